"""Small trained networks and their data, for the tests of calibration."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A residual block whose activations are functions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.norm_one = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.two, self.norm_two = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm_one(self.one(x)))
        return F.relu(self.norm_two(self.two(y)) + x)


def mlp() -> nn.Module:
    """Three linear layers, the first two with an activation."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def convnet() -> nn.Module:
    """A convolution with normalization, a residual block, and a linear layer; its statistics are those of data."""
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        Residual(6),
        nn.Flatten(),
        nn.Linear(150, 3),
    )
    for _ in range(20):
        net(images(16))
    return net.eval()


@cache
def images(n: int = 48) -> torch.Tensor:
    """[n, 2, 5, 5], smooth in space, so that inputs of a kernel are correlated."""
    draws = torch.Generator().manual_seed(3)
    rough = torch.randn(n, 2, 5, 5, generator=draws, dtype=torch.get_default_dtype())
    return F.avg_pool2d(rough, 3, 1, 1) * 2


@cache
def vectors(n: int = 64) -> torch.Tensor:
    """[n, 12], correlated."""
    draws = torch.Generator().manual_seed(4)
    mixing = torch.randn(12, 12, generator=draws, dtype=torch.get_default_dtype())
    return torch.randn(n, 12, generator=draws, dtype=torch.get_default_dtype()) @ mixing / 3
