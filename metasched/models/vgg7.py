"""VGG7, the network of the CIFAR-10 experiments of GXNOR-Net."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from metasched.models.table import Shape


class VGG7(nn.Sequential):
    """Twice conv w | pool | twice conv 2w | pool | twice conv 4w | pool | linear 8w - linear to classes.

    Each convolution (3x3, padding 1) and linear layer except the last has no bias and is followed by BatchNorm and
    ReLU; pools are 2x2 maxima and follow the ReLU. An adaptive average pool to 4x4 precedes the linear layers (the
    identity for 32x32 images).

    Source: Deng et al., GXNOR-Net, 2018, arXiv 1705.09283: 2x128C3-MP2-2x256C3-MP2-2x512C3-MP2-1024FC. We differ in the
    last layer, which is not followed by BatchNorm, and in the loss: cross-entropy instead of squared hinge.

    Args:
        in_channels: channels of the image.
        num_classes: number of outputs.
        width: w, channels of the first convolution; 128 in the paper.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 128) -> None:
        w = width
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        convolutions = ((in_channels, w), (w, w), (w, 2 * w), (2 * w, 2 * w), (2 * w, 4 * w), (4 * w, 4 * w))
        for i, (fan_in, fan_out) in enumerate(convolutions, start=1):
            modules[f"conv{i}"] = nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False)
            modules[f"norm{i}"] = nn.BatchNorm2d(fan_out)
            modules[f"act{i}"] = nn.ReLU()
            if i % 2 == 0:
                modules[f"pool{i}"] = nn.MaxPool2d(2)
        modules["average"] = nn.AdaptiveAvgPool2d(4)
        modules["flatten"] = nn.Flatten()
        modules["linear7"] = nn.Linear(4 * w * 4 * 4, 8 * w, bias=False)
        modules["norm7"] = nn.BatchNorm1d(8 * w)
        modules["act7"] = nn.ReLU()
        modules["linear8"] = nn.Linear(8 * w, num_classes)
        super().__init__(modules)


def build(shape: Shape, num_classes: int, width: int, _depth: int) -> VGG7:
    """The builder of the row in the table of models; see ModelSpec."""
    return VGG7(shape[0], num_classes, width)
