"""A model from outside the package, as somebody's own file: a multilayer perceptron with residual blocks."""

from __future__ import annotations

import math

import torch
from torch import nn

from metasched.models import ModelSpec, register_model
from metasched.models.table import Shape


class Block(nn.Module):
    """y = ReLU(BatchNorm(W x)) + x, x [N, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm, self.act = nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.linear(x))) + x


def build(shape: Shape, num_classes: int, width: int, depth: int) -> nn.Module:
    """``depth`` blocks of ``width`` units between two linear layers; images [N, C, H, W] to [N, num_classes]."""
    first = [nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU()]
    return nn.Sequential(*first, *(Block(width) for _ in range(depth)), nn.Linear(width, num_classes))


SPEC = register_model(ModelSpec("residual", "MLP with residual blocks", build, smallest_image=2, smallest_depth=2))
