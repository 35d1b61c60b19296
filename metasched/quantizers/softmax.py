"""The soft quantizer: the expectation over the level set under a softmax with a temperature.

    E_tau(x) = sum_k q_k p_k,      p = softmax(-(x - q_k)^2 / tau)

    dE/dx = (2 / tau) Var_p(q),    d p_k / d tau = p_k (e_k - sum_j p_j e_j) / tau^2,   e_k = (x - q_k)^2

As tau goes to 0 it tends to the hard quantizer, and its derivative to 0 except at the thresholds. At tau = 0 itself the
derivative is the straight-through one. Between two levels at a distance of 1 it is the stair under logistic noise of
scale tau / 2, whose half-width (of its central 95 %) is 1.83 tau.

Source: Hestia, arXiv 2601.20745, for ternary levels; hestia2026/Hestia, ``thermo_quantizer.py``. We differ: any level
set, and tau itself where the code adds 1e-6 to it.
"""

from __future__ import annotations

import torch

from metasched.quantizers.constants import row
from metasched.quantizers.levels import LevelSet
from metasched.quantizers.straight import straight_through

_HALF_QUANTUM = 0.5


def soft(x: torch.Tensor, levels: LevelSet, temperature: torch.Tensor) -> torch.Tensor:
    """The soft quantizer, differentiable in both arguments in any order; at temperature 0 the straight-through one.

    Args:
        x: [...], any floating dtype, in units of the scale.
        levels: the level set.
        temperature: tau, 0-d, >= 0, in squares of the scale; below the machine epsilon it is 0.

    Returns:
        shape and dtype of x.

    >>> from metasched.quantizers.levels import ternary
    >>> [soft(torch.tensor([-0.5, 3.0]), ternary(), torch.tensor(tau)).tolist() for tau in (0.05, 0.0)]
    [[-0.5, 1.0], [0.0, 1.0]]
    """
    cold = temperature < torch.finfo(x.dtype).eps
    try:
        if cold:
            return straight_through(x, levels, _HALF_QUANTUM)
        return _expectation(x, levels, temperature)
    except RuntimeError:  # under torch.vmap a tensor has no truth value
        warm = _expectation(x, levels, torch.where(cold, 1.0, temperature))
        return torch.where(cold, straight_through(x, levels, _HALF_QUANTUM), warm)


def _expectation(x: torch.Tensor, levels: LevelSet, temperature: torch.Tensor) -> torch.Tensor:
    q = row(levels.levels, x)
    return (torch.softmax(-(x[..., None] - q).square() / temperature, -1) * q).sum(-1)
