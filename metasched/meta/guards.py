"""What happens to hypergradients that went bad: named policies, each counted.

``keep``: a run whose loss or gradient is not finite is left out of the average. ``clip``: each run's gradient is scaled
to at most a given norm, so that one exploding run cannot outvote the others. ``Floored``: the noise stays above a
floor while learning, because hypergradients through noise narrower than about a tenth of a quantum explode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from metasched.hypergradients.base import Hypergradient
from metasched.layers import Layer


def keep(estimates: Sequence[Hypergradient]) -> list[Hypergradient]:
    """The estimates in which everything is finite."""
    return [e for e in estimates if e.diagnostics.nonfinite == 0]


def clip(gradient: list[torch.Tensor], largest: float) -> tuple[list[torch.Tensor], bool]:
    """The gradient scaled to norm ``largest`` at most, and whether it was."""
    norm = float(torch.cat([g.flatten() for g in gradient]).norm())
    if norm <= largest:
        return gradient, False
    return [g * (largest / norm) for g in gradient], True


class Floored(nn.Module):
    """A schedule whose ``noise_scale`` stays at or above a floor; its parameters are the schedule's own."""

    def __init__(self, schedule: nn.Module, floor: float) -> None:
        super().__init__()
        self.schedule = schedule
        self.floor = floor

    def forward(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values {control: [T, L]} at progress [T]."""
        values = self.schedule(progress, layers)
        if "noise_scale" in values:
            values["noise_scale"] = values["noise_scale"].clamp_min(self.floor)
        return values
