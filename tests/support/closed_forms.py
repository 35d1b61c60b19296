"""Training functions of studies whose score is a closed form of the controls, so that the best schedule is known."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metasched import MethodConfig

BEST = 1.5  # of the width of weights; the floor's is 0.5
RECIPE = MethodConfig(name="widths", activation_levels=None)
EXAMPLE = torch.zeros(2, 4)
STEPS = 4


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)).to(EXAMPLE.dtype)


def distance(model: nn.Module, player: Any, seed: int, steps: int) -> float:
    """- mean over steps and layers of (log width - log BEST)^2, plus noise of 0.01 from the seed; 0 without a width."""
    total = torch.zeros(())
    if player.layers and "weight_width" in controls(player):
        for _ in range(steps):
            widths = [player.value("weight_width", layer.name) for layer in player.layers]
            total -= (torch.tensor(widths) / BEST).log().square().mean() / steps
            player.step()
    return float(total + 0.01 * torch.randn((), generator=torch.Generator().manual_seed(seed)))


def slowly(model: nn.Module, player: Any, seed: int, steps: int) -> float:
    """``distance``, after a while, with a file for each call in the folder of CALLS."""
    Path(os.environ["CALLS"], f"{seed}_{os.getpid()}_{time.monotonic_ns()}").touch()
    time.sleep(0.05)
    return distance(model, player, seed, steps)


def controls(player: Any) -> set[str]:
    """Names of the controls of a player."""
    return set(next(iter(player._values.at(0).values())))
