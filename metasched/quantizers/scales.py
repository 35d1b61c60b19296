"""Scales: the value of level 1, computed from the initial weights for a whole tensor or for each output channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from metasched.quantizers.levels import LevelSet
from metasched.quantizers.stair import hard

ScaleName = Literal["unit", "max", "least_squares", "pow2"]
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
    best, least = _max(w, levels), torch.full((w.shape[0],), float("inf"), dtype=w.dtype, device=w.device)
    for share in torch.linspace(0.05, 1.0, 40, dtype=w.dtype, device=w.device):
        scale = _max(w, levels) * share
        error = (hard(w / scale.clamp_min(1e-30)[:, None], levels) * scale[:, None] - w).square().sum(1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


SCALES: dict[str, Callable[[torch.Tensor, LevelSet], torch.Tensor]] = {
    "unit": _unit,
    "max": _max,
    "least_squares": _least_squares,
    "pow2": _pow2,
}


def scale_of(w: torch.Tensor, levels: LevelSet, name: ScaleName, granularity: Granularity) -> torch.Tensor:
    """The scale of a weight tensor; its quantized values are scale * level.

    Args:
        w: weights [C_out, ...], any floating dtype.
        levels: the level set.
        name: ``unit`` (1, as ANA's quantum), ``max`` (top level at max |w|), ``least_squares`` (smallest squared
            error over 40 fractions of ``max``), ``pow2`` (INQ's 2^floor(log2(4 max|w| / 3)) as top level).
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
