"""LeNet, the network of the MNIST experiments of GXNOR-Net."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from metasched.models.table import Shape


class LeNet(nn.Sequential):
    """conv w | pool | conv 2w | pool | linear 16w - linear to classes.

    Each convolution (5x5, not padded) and linear layer except the last has no bias and is followed by BatchNorm and
    ReLU; pools are 2x2 maxima. Images need at least 16 pixels per side.

    Source: Deng et al., GXNOR-Net, 2018, arXiv 1705.09283: 32C5-MP2-64C5-MP2-512FC. We differ in the last layer, which
    is not followed by BatchNorm, and in the loss: cross-entropy instead of squared hinge.

    Args:
        in_channels: channels of the image.
        image_size: (height, width) in pixels.
        num_classes: number of outputs.
        width: w, channels of the first convolution; 32 in the paper.

    >>> sum(p.numel() for p in LeNet(1, (28, 28), num_classes=10).parameters())
    582634
    """

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int, width: int = 32) -> None:
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        height, breadth = image_size
        for i, (fan_in, fan_out) in enumerate(((in_channels, width), (width, 2 * width)), start=1):
            modules[f"conv{i}"] = nn.Conv2d(fan_in, fan_out, 5, bias=False)
            modules[f"norm{i}"] = nn.BatchNorm2d(fan_out)
            modules[f"act{i}"] = nn.ReLU()
            modules[f"pool{i}"] = nn.MaxPool2d(2)
            height, breadth = (height - 4) // 2, (breadth - 4) // 2
        modules["flatten"] = nn.Flatten()
        modules["linear3"] = nn.Linear(2 * width * height * breadth, 16 * width, bias=False)
        modules["norm3"] = nn.BatchNorm1d(16 * width)
        modules["act3"] = nn.ReLU()
        modules["linear4"] = nn.Linear(16 * width, num_classes)
        super().__init__(modules)


def build(shape: Shape, num_classes: int, width: int, _depth: int) -> LeNet:
    """The builder of the row in the table of models; see ModelSpec."""
    return LeNet(shape[0], shape[1:], num_classes, width)
