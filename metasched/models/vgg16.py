"""VGG-16 with batch normalization, for small images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from metasched.models.table import Shape

_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # channels, in units of w, and number of convolutions


class VGG16(nn.Sequential):
    """Thirteen 3x3 convolutions in five stages of w, 2w, 4w, 8w and 8w channels, then linear 8w - linear 8w - linear.

    Each layer except the last has no bias and is followed by BatchNorm and ReLU. A stage ends with a 2x2 maximum, as
    long as the map has two pixels: 32x32 images end as one pixel.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
    configuration D; with BatchNorm, and linear layers of 8w instead of 4096 units, as usual for CIFAR (Liu and Deng,
    ACPR 2015). We have no dropout.

    Args:
        in_channels: channels of the image.
        image_size: (height, width) in pixels.
        num_classes: number of outputs.
        width: w, channels of the first stage; 64 in the paper.
    """

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int, width: int = 64) -> None:
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        channels, index = in_channels, 0
        height, breadth = image_size
        for stage, (wide, convolutions) in enumerate(_STAGES, start=1):
            for _ in range(convolutions):
                index += 1
                modules[f"conv{index}"] = nn.Conv2d(channels, wide * width, 3, padding=1, bias=False)
                modules[f"norm{index}"] = nn.BatchNorm2d(wide * width)
                modules[f"act{index}"] = nn.ReLU()
                channels = wide * width
            if min(height, breadth) >= 2:
                modules[f"pool{stage}"] = nn.MaxPool2d(2)
                height, breadth = height // 2, breadth // 2
        modules["flatten"] = nn.Flatten()
        for i, features in ((14, channels * height * breadth), (15, 8 * width)):
            modules[f"linear{i}"] = nn.Linear(features, 8 * width, bias=False)
            modules[f"norm{i}"] = nn.BatchNorm1d(8 * width)
            modules[f"act{i}"] = nn.ReLU()
        modules["linear16"] = nn.Linear(8 * width, num_classes)
        super().__init__(modules)


def build(shape: Shape, num_classes: int, width: int, _depth: int) -> VGG16:
    """The builder of the row in the table of models; see ModelSpec."""
    return VGG16(shape[0], shape[1:], num_classes, width)
