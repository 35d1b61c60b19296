"""Scales: the value of level 1, computed from the first values of a tensor or of each output channel, or learned.

A learned scale starts at the smallest squared error and is then trained with the weights (LSQ):

    d/ds s Q(x / s) = Q(x / s) - (x / s) Q'(x / s)

With Q' = 1 between the outermost levels and 0 beyond, this is the derivative of the paper. The optimizer gets it times
g = 1 / sqrt(N Q_P), for N elements that share the scale and the largest level Q_P. The factor belongs to the update,
not to the quantizer: a hypergradient passes through the quantizer without it.

Source: LSQ, Esser et al., ICLR 2020, arXiv 1902.08153, sections 2.1 and 2.2.
We differ: the paper starts at 2 mean|x| / sqrt(Q_P); the smallest squared error suits any level set. Q_P is the largest
absolute level, also where levels are no integers. At an outermost level itself Q' is 1/2, the mean of both sides; in
the paper it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch

from metasched.quantizers.hard import hard
from metasched.quantizers.levels import LevelSet

_AT_ONCE = 2**16  # elements whose errors are computed in one call: they stay in the cache
ScaleName = Literal["unit", "max", "least_squares", "pow2", "learned"]
Granularity = Literal["tensor", "channel"]


def _unit(w: torch.Tensor, levels: LevelSet) -> torch.Tensor:
    return torch.ones(w.shape[0], dtype=w.dtype, device=w.device)


def _max(w: torch.Tensor, levels: LevelSet) -> torch.Tensor:
    return w.abs().amax(1) / max(abs(q) for q in levels.levels)


def _pow2(w: torch.Tensor, levels: LevelSet) -> torch.Tensor:
    # INQ: the largest level is 2^n1 with n1 = floor(log2(4 max|w| / 3)).
    largest = w.abs().amax(1).clamp_min(torch.finfo(w.dtype).tiny)
    top = max(abs(q) for q in levels.levels)
    return torch.exp2(torch.floor(torch.log2(4 * largest / 3))) / top


def _least_squares(w: torch.Tensor, levels: LevelSet) -> torch.Tensor:
    largest = best = _max(w, levels)
    least = torch.full_like(best, float("inf"))
    shares = torch.linspace(0.05, 1.0, 40, dtype=w.dtype, device=w.device)
    for some in shares.split(max(1, _AT_ONCE // w.numel())):
        scales = largest * some[:, None]
        errors = (hard(w / scales.clamp_min(1e-30)[..., None], levels) * scales[..., None] - w).square().sum(-1)
        for scale, error in zip(scales, errors, strict=True):
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


SCALES: dict[str, Callable[[torch.Tensor, LevelSet], torch.Tensor]] = {
    "unit": _unit,
    "max": _max,
    "least_squares": _least_squares,
    "pow2": _pow2,
    "learned": _least_squares,
}
SMALLEST = 1e-6  # of a learned scale: the paper has no bound, and a scale that crosses 0 turns the levels around


def scale_of(w: torch.Tensor, levels: LevelSet, name: ScaleName, granularity: Granularity) -> torch.Tensor:
    """The scale of a weight tensor; its quantized values are scale * level.

    Args:
        w: weights [C_out, ...], any floating dtype.
        levels: the level set.
        name: ``unit`` (1, as ANA's quantum), ``max`` (top level at max |w|), ``least_squares`` (smallest squared
            error over 40 fractions of ``max``), ``pow2`` (INQ's 2^floor(log2(4 max|w| / 3)) as top level), ``learned``
            (starts as ``least_squares``).
        granularity: ``tensor`` (one scale) or ``channel`` (one scale for each output channel).

    Returns:
        positive and detached, with the dtype of w and shape [1, 1, ...] or [C_out, 1, ...], which broadcasts over w.
        The scale of a tensor or channel of zeros is 1.
    """
    w = w.detach()
    rows = w.reshape(1, -1) if granularity == "tensor" else w.reshape(w.shape[0], -1)
    scale = SCALES[name](rows, levels)
    dead = rows.abs().amax(1) == 0
    return torch.where(dead, torch.ones_like(scale), scale).reshape(-1, *[1] * (w.dim() - 1))


def gradient_factor(elements: int, levels: LevelSet) -> float:
    """G = 1 / sqrt(N Q_P), by which the optimizer's gradient of a learned scale is multiplied.

    Args:
        elements: N, the number of elements that share one scale; of an activation those of one example.
        levels: of these elements; Q_P is their largest absolute value.

    >>> from metasched.quantizers.levels import ternary
    >>> gradient_factor(4, ternary())
    0.5
    """
    return 1 / math.sqrt(elements * max(abs(q) for q in levels.levels))
