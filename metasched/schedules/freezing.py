"""Hand-coded schedules of freezing: of INQ's share of frozen weights, and of the oscillation threshold.

The threshold of the authors' scripts is off (1 here) in the first quarter of the run, and then falls from 0.1 along
half a cosine to a last value that depends on network and bits:

    1                                                   u < 1/4
    c + (0.1 - c) (1 + cos(pi (u - 1/4) / (3/4))) / 2   from there on

with c = 0.011 (3 bits) or 0.01 (4 bits) for MobileNetV2.
"""

from __future__ import annotations

from functools import partial

from metasched.schedules.curves import HandCoded, constant, cosine_after, steps
from metasched.schedules.published import inq as published_inq

NO_FREEZING = (
    "nothing is frozen before the last step, not from a paper: with method.live hard the straight-through estimator, "
    "with float a float network that is rounded at the end"
)


def inq() -> list[HandCoded]:
    """INQ's schedules: the published ones, the ramps, and none."""
    none = {"freeze_fraction": partial(steps, times=(1.0,), values=(0.0, 1.0))}
    return [*published_inq(), HandCoded("inq_none", "inq", NO_FREEZING, none, "previous", (1.0,))]


OSCILLATION = (
    "Nagel, Fournarakis, Bondarenko, Blankevoort: Overcoming Oscillations in Quantization-Aware Training. ICML 2022, "
    "arXiv 2203.11086; Qualcomm-AI-research/oscillations-qat"
)
_ONSET = 0.25


def oscillation() -> list[HandCoded]:
    """The thresholds of the authors' MobileNetV2, and none, which is STE."""
    published = [
        HandCoded(
            f"oscillation_mobilenetv2_{bits}bit",
            "oscillation",
            f"{OSCILLATION}, bash/train_mobilenetv2.sh",
            {"freeze_threshold": partial(cosine_after, onset=_ONSET, before=1.0, start=0.1, end=end)},
            "linear",
            (_ONSET,),
        )
        for bits, end in ((3, 0.011), (4, 0.01))
    ]
    none = {"freeze_threshold": partial(constant, value=1.0)}
    citation = "nothing is ever frozen: the straight-through estimator"
    return [*published, HandCoded("oscillation_none", "oscillation", citation, none, "linear")]
