"""Hand-coded schedules of ``dpq``: the temperature of its softmax, the same in all tables.

dpq_constant       1 throughout: the authors' code, and no schedule
dpq_linear         1 + (0.01 - 1) u
dpq_exponential    0.01^u: from 1 to 0.01, equal factors in equal times
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from metasched.core.layer import Layer
from metasched.schedules.cooling import geometric
from metasched.schedules.curves import Curve, HandCoded, constant

DPQ = (
    "Chen, Li, Sun: Differentiable Product Quantization for End-to-End Embedding Compression. ICML 2020, arXiv "
    "1908.09756; chentingpc/dpq_embedding_compression, core/kd_quantizer.py"
)
START, END = 1.0, 0.01


def line(progress: torch.Tensor, layers: Sequence[Layer], *, start: float, end: float) -> torch.Tensor:
    """From start to end at progress [T], the same for L layers: [T, L]."""
    return torch.lerp(progress.new_tensor(start), progress.new_tensor(end), progress)[:, None].repeat(1, len(layers))


def exponential(progress: torch.Tensor, layers: Sequence[Layer], *, start: float, end: float) -> torch.Tensor:
    """Start (end / start)^u at progress u [T], the same for L layers: [T, L]; the end exactly."""
    return torch.where(progress[:, None] == 1, end, geometric(progress, layers, start=start, end=end))


def dpq() -> list[HandCoded]:
    """The authors' constant, and two ramps to where the softmax selects."""
    curves: dict[str, tuple[str, Curve]] = {
        "constant": (f"{DPQ}: tau = 1", partial(constant, value=START)),
        "linear": ("a linear ramp from 1 to 0.01, not from a paper", partial(line, start=START, end=END)),
        "exponential": (
            "an exponential ramp from 1 to 0.01, not from a paper",
            partial(exponential, start=START, end=END),
        ),
    }
    return [
        HandCoded(f"dpq_{name}", "dpq", citation, {"temperature": curve}, "linear")
        for name, (citation, curve) in curves.items()
    ]
