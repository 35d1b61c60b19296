"""Hand-coded schedules of ``adaround``: the exponent beta and the factor lambda of its penalty, the same in all layers.

With progress u, c = clip((u - 1/5) / (4/5)) to [0, 1], and lambda = 0 for u < 1/5 (the warm start), then 0.01:

    adaround_cosine          beta = 2 + 18 (1 + cos(pi c)) / 2         AIMET
    adaround_linear          beta = 20 - 18 c                          BRECQ, MQBench, Brevitas
    adaround_linear_2bit     the same, with lambda = 0.1               BRECQ, for MobileNetV2 at 2 bits
    adaround_constant        beta = 2, and lambda = 0.01 throughout: no schedule
    adaround_unregularized   lambda = 0: no penalty at all

The libraries switch lambda on in one step, so that beta before that plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from metasched.core.layer import Layer
from metasched.schedules.curves import Curve, HandCoded, constant, cosine_after, steps

ADAROUND = (
    "Nagel, Amjad, van Baalen, Louizos, Blankevoort: Up or Down? Adaptive Rounding for Post-Training Quantization. "
    "ICML 2020, arXiv 2004.10568"
)
WARM_START = 0.2
SHARPEST, SOFTEST, PENALTY, STRONG = 20.0, 2.0, 0.01, 0.1


def linear_after(
    progress: torch.Tensor, layers: Sequence[Layer], *, onset: float, start: float, end: float
) -> torch.Tensor:
    """``start`` until the onset, then along a line to ``end``: [T, L] at progress [T], equal in all layers.

    >>> linear_after(torch.tensor([0.0, 0.5, 0.75, 1.0]), [None], onset=0.5, start=3.0, end=1.0).flatten().tolist()
    [3.0, 3.0, 2.0, 1.0]
    """
    through = ((progress - onset) / (1 - onset)).clamp(0, 1)
    return (start + (end - start) * through)[:, None].repeat(1, len(layers))


def adaround() -> list[HandCoded]:
    """The published schedules, a constant, and none of the penalty."""
    warm: Curve = partial(steps, times=(WARM_START,), values=(0.0, PENALTY))
    strong: Curve = partial(steps, times=(WARM_START,), values=(0.0, STRONG))
    cosine = partial(cosine_after, onset=WARM_START, before=SHARPEST, start=SHARPEST, end=SOFTEST)
    linear = partial(linear_after, onset=WARM_START, start=SHARPEST, end=SOFTEST)
    soft = partial(constant, value=SOFTEST)
    rows: list[tuple[str, str, Curve, Curve, tuple[float, ...]]] = [
        ("cosine", f"{ADAROUND}; as in AIMET: aimet_torch, adaround", cosine, warm, (WARM_START,)),
        ("linear", f"{ADAROUND}; as in BRECQ and MQBench", linear, warm, (WARM_START,)),
        ("linear_2bit", f"{ADAROUND}; as in BRECQ for MobileNetV2 at 2 bits", linear, strong, (WARM_START,)),
        ("constant", "no schedule: a constant penalty, not from a paper", soft, partial(constant, value=PENALTY), ()),
        ("unregularized", "without the penalty, as an ablation", soft, partial(constant, value=0.0), ()),
    ]
    return [
        HandCoded(
            f"adaround_{name}",
            "adaround",
            citation,
            {"rounding_beta": beta, "rounding_penalty": penalty},
            "linear",
            jumps,
        )
        for name, citation, beta, penalty, jumps in rows
    ]
