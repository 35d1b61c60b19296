"""Hand-coded schedules by family, which is the name of their method; the row of each method gives them.

``joint`` (ANA and INQ at once) has no published schedule. Its schedules are: each ramp, for noise and freezing alike;
each schedule of ANA, with all weights frozen at the last step; and each schedule of INQ, with noise of constant width
until the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

from metasched.core.errors import MetaschedError
from metasched.methods import METHODS, MethodSpec, build_method, find_method
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.network.recipe import Recipe
from metasched.schedules.curves import RAMPS, Curve, HandCoded, falling, rising, steps
from metasched.schedules.published import NO_MEAN, RAMP_CITATIONS, START, STATIC_NOISE, ana, both_noises, inq

__all__ = ["HandCoded", "floor_of", "hand_coded", "has_floor", "schedules_of"]

NO_SCHEDULE = "floor"  # name of the schedule of floor_of

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


def method_of_hand_coded() -> dict[str, str]:
    """Name of each hand-coded schedule -> name of its method."""
    return {name: family for family in families() for name in hand_coded(family)}


def schedules_of(config: MethodConfig) -> dict[str, HandCoded]:
    """The hand-coded schedules that a configured method can play, by name.

    These are those of its family; of a joint method whose controls these do not fit, those of its parts. A control that
    a schedule does not set has the value that means no schedule (``Control.none_value``), and its end at the last step;
    where there is no such value, the schedule is left out.
    """
    spec = find_method(config.name)
    own, parts = _family(spec), spec.parts(config)
    if not parts:
        return dict(own)
    controls = build_method(config).controls
    names = {c.name for c in controls}
    fitting = [s for s in own.values() if s.curves.keys() <= names]
    fitting = fitting or [s for part in parts for s in _family(find_method(part)).values()]
    return {s.name: whole for s in fitting if (whole := completed(s, controls)) is not None}


def published(method: str | MethodConfig | Recipe) -> tuple[HandCoded, ...]:
    """The hand-coded schedules that a method can play, most of them published ones; each has its ``citation``.

    Args:
        method: its name, its configuration, or a recipe with it.

    Raises:
        MetaschedError: no such method, or one that is built already.

    >>> [schedule.name for schedule in published("rates")]
    ['rates_rising', 'rates_constant', 'rates_late']
    """
    config = method.method if isinstance(method, Recipe) else method
    config = MethodConfig(name=config) if isinstance(config, str) else config
    if not isinstance(config, MethodConfig):
        problem = f"has a {type(config).__name__} for a method"
        raise MetaschedError("published", problem, "give the name of a method, a MethodConfig, or a Recipe with one")
    return tuple(schedules_of(config).values())


def has_floor(config: MethodConfig) -> bool:
    """Whether a configured method has a schedule that means no schedule; see ``floor_of``."""
    controls = build_method(config).controls
    return not find_method(config.name).floor_needs(config) and all(c.none_value is not None for c in controls)


def floor_of(config: MethodConfig, path: str) -> HandCoded:
    """No schedule, as a schedule of a configured method: each control keeps its ``none_value`` until its end.

    The end, if there is one, holds in the last step. The name of the schedule is ``floor``.

    Args:
        config: of the method.
        path: what error messages begin with.

    Raises:
        MetaschedError: the method does not train as without a schedule, or a control has no such value.
    """
    name, controls = config.name, build_method(config).controls
    if needs := find_method(name).floor_needs(config):
        problem = f"{NO_SCHEDULE} is no schedule at all, and {name} does not train like that as it is configured"
        raise MetaschedError(path, problem, needs)
    floor = completed(HandCoded(NO_SCHEDULE, name, "no schedule: the controls do not move", {}, "previous"), controls)
    if floor is None:
        without = next(c.name for c in controls if c.none_value is None)
        problem = f"{NO_SCHEDULE} is no schedule at all, and {without} of {name} has no value that means this"
        fix = "name a hand-coded schedule or a file, or use a method whose controls all have one, such as widths"
        raise MetaschedError(path, problem, fix)
    return floor


def joined_schedules(names: Sequence[str], config: MethodConfig, path: str) -> HandCoded:
    """Hand-coded schedules of the parts of a joint method as one, whose name is theirs joined by +.

    Args:
        names: one of each part.
        config: of the joint method.
        path: what error messages begin with.

    Raises:
        MetaschedError: step functions, or a control that none of them sets and that needs a value.
    """
    every = {name: schedule for spec in METHODS.values() for name, schedule in _family(spec).items()}
    chosen, name = [every[name] for name in names], "+".join(names)
    if any(s.interpolation != "linear" for s in chosen):
        raise MetaschedError(path, f"{name} has a step function", "join schedules that are linear between their knots")
    curves = {control: curve for s in chosen for control, curve in s.curves.items()}
    jumps = tuple(sorted({jump for s in chosen for jump in s.jumps}))
    citation = "; ".join(s.citation for s in chosen)
    found = completed(HandCoded(name, config.name, citation, curves, "linear", jumps), build_method(config).controls)
    if found is None:
        raise MetaschedError(path, f"{name} leaves a control without a value", "name a schedule of each part")
    return found


def completed(schedule: HandCoded, controls: Sequence[Control]) -> HandCoded | None:
    """The schedule with a curve for each control; None if one that it leaves out has no value without a schedule."""
    missing = [c for c in controls if c.name not in schedule.curves]
    curves = dict(schedule.curves)
    jumps = set(schedule.jumps)
    for c in missing:
        if c.none_value is None:
            return None
        end = c.none_value if c.end is None else c.end
        curves[c.name] = partial(steps, times=(1.0,), values=(c.none_value, end))
        jumps |= {1.0} if end != c.none_value else set()
    return replace(schedule, curves=curves, jumps=tuple(sorted(jumps))) if missing else schedule


def hand_coded(family: str) -> dict[str, HandCoded]:
    """The hand-coded schedules of a method, by name.

    Raises:
        MetaschedError: no such family.

    >>> list(hand_coded("inq"))[:2]
    ['inq_alexnet_5bit', 'inq_resnet18_4bit']
    """
    return dict(_family(find_method(family)))
