"""A small convolutional network that trains in milliseconds a step on a CPU."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

STRIDE_2_FROM = 16  # pixels; below, the first convolution keeps the resolution


class ConvNet(nn.Sequential):
    """Three times 3x3 convolution - BatchNorm - ReLU with w, 2w and 4w channels, then flatten and linear.

    The convolutions downsample by stride 2 instead of pooling, which is cheap and leaves each activation on its level
    set; the first one only for images of 16 pixels or more. So 8x8 images end as 2x2, 28x28 and 32x32 ones as 4x4.

    Args:
        in_channels: channels of the image.
        image_size: (height, width) in pixels.
        num_classes: number of outputs.
        width: w, channels of the first block.

    >>> sum(p.numel() for p in ConvNet(1, (8, 8), num_classes=10, width=8).parameters())
    7234
    """

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int, width: int) -> None:
        channels = (in_channels, width, 2 * width, 4 * width)
        strides = (2 if min(image_size) >= STRIDE_2_FROM else 1, 2, 2)
        height, breadth = image_size
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for i, stride in enumerate(strides, start=1):
            modules[f"conv{i}"] = nn.Conv2d(channels[i - 1], channels[i], 3, stride=stride, padding=1, bias=False)
            modules[f"norm{i}"] = nn.BatchNorm2d(channels[i])
            modules[f"act{i}"] = nn.ReLU()
            height, breadth = -(-height // stride), -(-breadth // stride)  # rounded up
        modules["flatten"] = nn.Flatten()
        modules["linear"] = nn.Linear(channels[-1] * height * breadth, num_classes)
        super().__init__(modules)
