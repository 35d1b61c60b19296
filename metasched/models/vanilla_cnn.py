"""A plain convolutional network of five layers, as LeNet-5 has them."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from metasched.models.table import Shape


class VanillaCNN(nn.Sequential):
    """conv w | pool | conv 8/3 w | pool | linear 20 w - linear 14 w - linear to classes.

    Each convolution (5x5, not padded) and linear layer except the last has no bias and is followed by BatchNorm and
    ReLU; pools are 2x2 maxima. Images need at least 16 pixels per side. At w = 6 the layers have 6, 16, 120, 84 and 10
    outputs.

    Source of the sizes: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998 (LeNet-5). We
    differ in BatchNorm, ReLU, maxima for pools, and a second convolution that reads all channels.

    Args:
        in_channels: channels of the image.
        image_size: (height, width) in pixels.
        num_classes: number of outputs.
        width: w, channels of the first convolution; 6 in LeNet-5.

    >>> [m.out_features for m in VanillaCNN(3, (32, 32), num_classes=10) if isinstance(m, nn.Linear)]
    [120, 84, 10]
    """

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int, width: int = 6) -> None:
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        height, breadth = image_size
        for i, (fan_in, fan_out) in enumerate(((in_channels, width), (width, 8 * width // 3)), start=1):
            modules[f"conv{i}"] = nn.Conv2d(fan_in, fan_out, 5, bias=False)
            modules[f"norm{i}"] = nn.BatchNorm2d(fan_out)
            modules[f"act{i}"] = nn.ReLU()
            modules[f"pool{i}"] = nn.MaxPool2d(2)
            height, breadth = (height - 4) // 2, (breadth - 4) // 2
        modules["flatten"] = nn.Flatten()
        features = 8 * width // 3 * height * breadth
        for i, units in ((3, 20 * width), (4, 14 * width)):
            modules[f"linear{i}"] = nn.Linear(features, units, bias=False)
            modules[f"norm{i}"] = nn.BatchNorm1d(units)
            modules[f"act{i}"] = nn.ReLU()
            features = units
        modules["linear5"] = nn.Linear(features, num_classes)
        super().__init__(modules)


def build(shape: Shape, num_classes: int, width: int, _depth: int) -> VanillaCNN:
    """The builder of the row in the table of models; see ModelSpec."""
    return VanillaCNN(shape[0], shape[1:], num_classes, width)
