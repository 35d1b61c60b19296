"""ResNet-20 for small images, with shortcuts without parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from metasched.models.table import Shape


class ResNet20(nn.Module):
    """3x3 convolution, nine residual blocks of two 3x3 convolutions, global average pool, linear: 20 layers.

    Three stages of three blocks have w, 2w and 4w channels; the second and the third stage begin with stride 2.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, option A shortcuts:
    identities, subsampled and padded with zero channels where the shape changes. 269,722 parameters for CIFAR-10 at
    w = 16. We differ in the initial weights, which are torch's defaults, and keep the last layer's bias.

    Args:
        in_channels: channels of the image.
        num_classes: number of outputs.
        width: w, channels of the first stage; 16 in the paper.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU()
        self.blocks = nn.Sequential(
            *(Block(width, width) for _ in range(3)),
            Block(width, 2 * width, stride=2),
            *(Block(2 * width, 2 * width) for _ in range(2)),
            Block(2 * width, 4 * width, stride=2),
            *(Block(4 * width, 4 * width) for _ in range(2)),
        )
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores [N, num_classes] of images [N, C, H, W]."""
        x = self.act(self.norm(self.conv(x)))
        return self.linear(self.flatten(self.average(self.blocks(x))))


class Block(nn.Module):
    """ReLU(conv - norm - ReLU - conv - norm (x) + shortcut(x)), the basic block of He et al., figure 2.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result, at least ``in_channels``.
        stride: stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        assert out_channels >= in_channels, (in_channels, out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output [N, out_channels, H / stride, W / stride] (rounded up) for an input [N, in_channels, H, W]."""
        residual = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(residual + self.shortcut(x))

    def shortcut(self, x: torch.Tensor) -> torch.Tensor:
        """Option A: every ``stride``-th pixel of [N, in_channels, H, W], and zeros in the additional channels."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def build(shape: Shape, num_classes: int, width: int, _depth: int) -> ResNet20:
    """The builder of the row in the table of models; see ModelSpec."""
    return ResNet20(shape[0], num_classes, width)
