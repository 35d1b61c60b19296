"""What happens to hypergradients that went bad: named policies, each counted.

``keep``: a run whose loss or gradient is not finite is left out of the average. ``clip``: each run's gradient is scaled
to at most a given norm, so that one exploding run cannot outvote the others. A third one, the noise floor, belongs to
the estimators that differentiate (hypergradients/reverse.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metasched.hypergradients.base import Hypergradient


def keep(estimates: Sequence[Hypergradient]) -> list[Hypergradient]:
    """The estimates in which everything is finite."""
    return [e for e in estimates if e.diagnostics.nonfinite == 0]


def clip(gradient: list[torch.Tensor], largest: float) -> tuple[list[torch.Tensor], bool]:
    """The gradient scaled to norm ``largest`` at most, and whether it was."""
    norm = float(torch.cat([g.flatten() for g in gradient]).norm())
    if norm <= largest:
        return gradient, False
    return [g * (largest / norm) for g in gradient], True
