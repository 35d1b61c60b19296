"""Hand-coded schedules of ``bayesian_bits``: penalty, temperature of the gates, and when these are fixed.

    bayesian_bits_001, ..._010    mu = 0.01 and 0.1, tau = 2/3, gates fixed from 3/4 of the run on
    bayesian_bits_rising          mu from 0 to 0.1 along a line up to where gates are fixed, then 0.1
    bayesian_bits_cooling         mu = 0.01, tau from 2/3 to 0.1, equal factors in equal times

The authors train gates for 30 epochs and fine-tune for 10 with gates fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from metasched.core.layer import Layer
from metasched.schedules.curves import Curve, HandCoded, constant, steps
from metasched.schedules.dpq import exponential

BAYESIAN_BITS = (
    "van Baalen, Louizos, Nagel, Amjad, Wang, Blankevoort, Welling: Bayesian Bits: Unifying Quantization and Pruning. "
    "NeurIPS 2020, arXiv 2005.07093; Qualcomm-AI-research/BayesianBits, README"
)
FIXED = 0.75  # progress at which gates are fixed
TEMPERATURE = 2 / 3
COLDEST = 0.1


def rising(progress: torch.Tensor, layers: Sequence[Layer], *, end: float) -> torch.Tensor:
    """From 0 to ``end`` along a line up to 3/4 of the run, then ``end``: [T, L] at progress [T]."""
    return (end * (progress / FIXED).clamp(max=1))[:, None].repeat(1, len(layers))


def bayesian_bits() -> list[HandCoded]:
    """The authors' constants, and two ramps that are not from a paper."""
    fixed = partial(steps, times=(FIXED,), values=(0.0, 1.0))
    same = partial(constant, value=TEMPERATURE)
    published = f"{BAYESIAN_BITS}: constant mu, then gates are fixed"
    cold = partial(exponential, start=TEMPERATURE, end=COLDEST)
    rows: dict[str, tuple[str, Curve, Curve]] = {
        "001": (published, partial(constant, value=0.01), same),
        "010": (published, partial(constant, value=0.1), same),
        "rising": ("mu rises to 0.1, not from a paper", partial(rising, end=0.1), same),
        "cooling": ("the gates' temperature falls to 0.1, not from a paper", partial(constant, value=0.01), cold),
    }
    return [
        HandCoded(
            f"bayesian_bits_{name}",
            "bayesian_bits",
            citation,
            {"mu": mu, "gate_temperature": temperature, "gates_fixed": fixed},
            "previous" if name in ("001", "010") else "linear",
            (FIXED,),
        )
        for name, (citation, mu, temperature) in rows.items()
    ]
