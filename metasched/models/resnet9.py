"""ResNet-9, a residual network of nine layers that learns CIFAR-10 quickly."""

from __future__ import annotations

import torch
from torch import nn

from metasched.models.table import Shape


class ResNet9(nn.Module):
    """conv w - conv 2w | pool - residual 2w - conv 4w | pool - conv 8w | pool - residual 8w - maximum - linear.

    Each convolution (3x3, padding 1, no bias) is followed by BatchNorm and ReLU; a residual block adds its input to two
    of them. Pools are 2x2 maxima; the last maximum is over the whole map, which has 4x4 pixels for 32x32 images.

    Source: D. Page, "How to Train Your ResNet", 2018, and the winning entry of DAWNBench for CIFAR-10, cifar10-fast. We
    differ in the initial weights, which are torch's defaults, and in not scaling the outputs by 1/8.

    Args:
        in_channels: channels of the image.
        num_classes: number of outputs.
        width: w, channels of the first convolution; 64 in the source.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        w = width
        self.blocks = nn.Sequential(
            Unit(in_channels, w),
            Unit(w, 2 * w, pool=True),
            Residual(2 * w),
            Unit(2 * w, 4 * w, pool=True),
            Unit(4 * w, 8 * w, pool=True),
            Residual(8 * w),
        )
        self.maximum = nn.AdaptiveMaxPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(8 * w, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores [N, num_classes] of images [N, C, H, W]."""
        return self.linear(self.flatten(self.maximum(self.blocks(x))))


class Unit(nn.Sequential):
    """3x3 convolution, BatchNorm, ReLU, and perhaps a 2x2 maximum: [N, in, H, W] to [N, out, H, W] or half of it."""

    def __init__(self, in_channels: int, out_channels: int, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU()
        if pool:
            self.pool = nn.MaxPool2d(2)


class Residual(nn.Module):
    """x + unit(unit(x)), with as many channels as x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.units = nn.Sequential(Unit(channels, channels), Unit(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output [N, channels, H, W] for an input of that shape."""
        return x + self.units(x)


def build(shape: Shape, num_classes: int, width: int, _depth: int) -> ResNet9:
    """The builder of the row in the table of models; see ModelSpec."""
    return ResNet9(shape[0], num_classes, width)
