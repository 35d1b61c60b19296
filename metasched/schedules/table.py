"""Hand-coded schedules by family, which is the name of their method; the row of each method gives them.

``joint`` (ANA and INQ at once) has no published schedule. Its schedules are: each ramp, for noise and freezing alike;
each schedule of ANA, with all weights frozen at the last step; and each schedule of INQ, with noise of constant width
until the last step.
"""

from __future__ import annotations

from functools import cache, partial

from metasched.methods import METHODS, MethodSpec, find_method
from metasched.schedules.curves import RAMPS, Curve, HandCoded, falling, rising, steps
from metasched.schedules.published import NO_MEAN, RAMP_CITATIONS, START, STATIC_NOISE, ana, both_noises, inq

__all__ = ["HandCoded", "hand_coded"]

_FREEZE_AT_END: Curve = partial(steps, times=(1.0,), values=(0.0, 1.0))

_STE = HandCoded(
    "ste",
    "ste",
    "Bengio, Leonard, Courville: Estimating or Propagating Gradients Through Stochastic Neurons for Conditional "
    "Computation. 2013, arXiv 1308.3432; the straight-through estimator has no control",
    {},
    "linear",
)

_FLOAT = HandCoded("float", "float", "the network without quantization has no control", {}, "linear")


def _same_ramp(ramp: str) -> HandCoded:
    curves: dict[str, Curve] = {
        **both_noises(partial(falling, ramp=ramp, start=START)),
        "noise_mean": NO_MEAN,
        "freeze_fraction": partial(rising, ramp=ramp),
    }
    return HandCoded(f"joint_{ramp}", "joint", f"{RAMP_CITATIONS[ramp]}; noise and freezing together", curves, "linear")


def _with_other(schedule: HandCoded, curves: dict[str, Curve], addition: str) -> HandCoded:
    """A schedule of one method, with fixed curves that jump at the end for the controls of the other."""
    return HandCoded(
        f"joint_{schedule.name}",
        "joint",
        f"{schedule.citation}; {addition}",
        {**schedule.curves, **curves},
        schedule.interpolation,
        tuple(sorted({*schedule.jumps, 1.0})),
    )


_ANA, _INQ = ana(), inq()
_JOINT = [
    *(_same_ramp(ramp) for ramp in RAMPS),
    *(_with_other(s, {"freeze_fraction": _FREEZE_AT_END}, "all weights frozen at the last step") for s in _ANA),
    *(
        _with_other(
            s, {**both_noises(STATIC_NOISE), "noise_mean": NO_MEAN}, "noise of half-width 0.5 until the last step"
        )
        for s in _INQ
    ),
]


def float_network() -> list[HandCoded]:
    """The only schedule of the float network."""
    return [_FLOAT]


def ste() -> list[HandCoded]:
    """The only schedule of STE, which has no controls."""
    return [_STE]


def joint() -> list[HandCoded]:
    """The schedules of the joint method."""
    return list(_JOINT)


@cache
def _family(spec: MethodSpec) -> dict[str, HandCoded]:
    return {schedule.name: schedule for schedule in spec.schedules()}


def families() -> tuple[str, ...]:
    """The methods that have hand-coded schedules."""
    return tuple(name for name, spec in METHODS.items() if _family(spec))


def hand_coded(family: str) -> dict[str, HandCoded]:
    """The hand-coded schedules of a method, by name.

    Raises:
        MetaschedError: no such family.

    >>> list(hand_coded("inq"))[:2]
    ['inq_alexnet_5bit', 'inq_resnet18_4bit']
    """
    return dict(_family(find_method(family)))
