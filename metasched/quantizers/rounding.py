"""Rounding to one of the two neighbouring levels: nearest, at random, or between the two.

With neighbouring levels l <= x <= u, the randomness kappa in [0, 1] and a uniform number v of [0, 1),

    R(x) = u where v < P, else l,      P = (1 - kappa) [x >= (l + u) / 2] + kappa (x - l) / (u - l)

Beyond the outermost levels it is the outermost level. At kappa = 0 this is the hard quantizer Q, at kappa = 1
stochastic rounding, of which the mean is x and the variance (x - l) (u - x). In between,

    E R(x) = (1 - kappa) Q(x) + kappa clip(x)

Its derivatives are those of R: clip(x) - Q(x) in kappa, and (1 - kappa) Q'(x) + kappa clip'(x) in x, with the
straight-through Q'.

Source: stochastic rounding as in Gupta, Agrawal, Gopalakrishnan, Narayanan: Deep Learning with Limited Numerical
Precision. ICML 2015, arXiv 1502.02551, section 3. The randomness in between is ours.
"""

from __future__ import annotations

import torch

from metasched.quantizers.constants import row
from metasched.quantizers.levels import LevelSet
from metasched.quantizers.straight import straight_through

_HALF_QUANTUM = 0.5


def rounded(x: torch.Tensor, levels: LevelSet, randomness: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """R(x), with the derivatives of its mean.

    Args:
        x: [...], any floating dtype, in units of the scale.
        levels: the level set.
        randomness: kappa in [0, 1], 0-d.
        uniform: v in [0, 1), with the shape of x.

    Returns:
        shape and dtype of x, every value a level; NaN stays NaN.

    >>> from metasched.quantizers.levels import ternary
    >>> x, v = torch.tensor([-0.25, 0.0, 0.75, 3.0]), torch.tensor([0.5, 0.5, 0.8, 0.8])
    >>> [rounded(x, ternary(), torch.tensor(kappa), v).tolist() for kappa in (0.0, 1.0)]
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
    """
    kappa = randomness.to(x.dtype)
    value = _drawn(x.detach(), levels, kappa.detach(), uniform)
    mean = torch.lerp(straight_through(x, levels, _HALF_QUANTUM), x.clamp(levels.levels[0], levels.levels[-1]), kappa)
    return value + (mean - mean.detach())  # the difference is exactly 0: it has the derivatives alone


def _drawn(x: torch.Tensor, levels: LevelSet, kappa: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    q = row(levels.levels, x)
    above = torch.bucketize(x.contiguous(), q, right=True)  # of the first level above x
    lower, upper = q[(above - 1).clamp_min(0)], q[above.clamp_max(len(q) - 1)]
    gap = upper - lower
    nearest = gap * (x >= (lower + upper) / 2)
    drawn = torch.where(uniform * gap < torch.lerp(nearest, x - lower, kappa), upper, lower)
    return torch.where(x.isnan(), x, drawn)
