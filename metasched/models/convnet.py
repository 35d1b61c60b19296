"""A small convolutional network; a training step takes milliseconds on a CPU."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from metasched.models.table import Shape

STRIDE_2_FROM = 16  # pixels; below, the first convolution keeps the resolution


class ConvNet(nn.Sequential):
    """``depth`` times 3x3 convolution - BatchNorm - ReLU in three stages of w, 2w and 4w channels, then linear.

    The stages have equal lengths; if depth is not a multiple of three, the last ones are longer by one. The first
    convolution of each stage has stride 2 instead of a pool, which is cheap and keeps activations on their level set;
    that of the first stage only for images of 16 pixels or more. Feature maps end as 2x2 for 8x8 images and as 4x4 for
    28x28 and 32x32 images. Inputs are [N, C, H, W], outputs [N, num_classes].

    Args:
        in_channels: channels of the image.
        image_size: (height, width) in pixels.
        num_classes: number of outputs.
        width: w, channels of the first stage.
        depth: number of convolutions, at least 3.

    >>> sum(p.numel() for p in ConvNet(1, (8, 8), num_classes=10, width=8).parameters())
    7234
    """

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], num_classes: int, width: int, depth: int = 3
    ) -> None:
        assert depth >= 3, depth
        height, breadth = image_size
        stages = (0, depth // 3, 2 * depth // 3)  # index of the first convolution of each
        channels, modules = in_channels, OrderedDict[str, nn.Module]()
        for i in range(depth):
            stage = sum(i >= start for start in stages) - 1
            stride = 2 if i in stages and (i > 0 or min(image_size) >= STRIDE_2_FROM) else 1
            wide = width * 2**stage
            modules[f"conv{i + 1}"] = nn.Conv2d(channels, wide, 3, stride=stride, padding=1, bias=False)
            modules[f"norm{i + 1}"] = nn.BatchNorm2d(wide)
            modules[f"act{i + 1}"] = nn.ReLU()
            channels, height, breadth = wide, -(-height // stride), -(-breadth // stride)  # rounded up
        modules["flatten"] = nn.Flatten()
        modules["linear"] = nn.Linear(channels * height * breadth, num_classes)
        super().__init__(modules)


def build(shape: Shape, num_classes: int, width: int, depth: int) -> ConvNet:
    """The builder of the row in the table of models; see ModelSpec."""
    return ConvNet(shape[0], shape[1:], num_classes, width, depth)
