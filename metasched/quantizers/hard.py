"""The hard quantizer: the nearest level, right continuous at the thresholds; it has no derivative."""

from __future__ import annotations

import torch

from metasched.quantizers.constants import constants, row
from metasched.quantizers.levels import LevelSet

_FEW = 4  # number of levels up to which comparing with each threshold is faster than a binary search


def hard(x: torch.Tensor, levels: LevelSet) -> torch.Tensor:
    """The hard quantizer: q_k for theta_{k-1} <= x < theta_k.

    Args:
        x: [...], any floating dtype, in units of the scale.
        levels: the level set.

    Returns:
        shape and dtype of x, detached; NaN stays NaN.

    >>> from metasched.quantizers.levels import ternary
    >>> hard(torch.tensor([-0.6, -0.5, 0.4, 0.5, 9.0]), ternary()).tolist()
    [-1.0, 0.0, 0.0, 1.0, 1.0]
    """
    x = x.detach()
    if levels.rounds:
        return _rounded(x, levels)
    if len(levels.levels) > _FEW:
        index = torch.bucketize(x, row(levels.thresholds, x), right=True)
        return torch.where(x.isnan(), x, row(levels.levels, x)[index])
    value, *above = constants(levels.levels, x)
    for theta, level in zip(constants(levels.thresholds, x), above, strict=True):
        value = torch.lerp(level, value, positive(theta - x))
    return value


def _rounded(x: torch.Tensor, levels: LevelSet) -> torch.Tensor:
    """The hard quantizer for levels that are multiples of their distance: by rounding, halves upwards."""
    first, last, jump = levels.levels[0], levels.levels[-1], levels.jumps[0]
    z = x if jump == 1 else x / jump
    y = (z * 2).floor_().add_(1).mul_(0.5).floor_()  # exact, and 0 has no sign; z + 1/2 is rounded just below 1/2
    return (y if jump == 1 else y.mul_(jump)).clamp(first, last)


def positive(x: torch.Tensor) -> torch.Tensor:
    """1 where x [...] is above 0, 0 elsewhere, NaN where it is NaN: with lerp much faster than torch.where."""
    return x.clamp(0, 1).ceil()
