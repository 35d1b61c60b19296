"""VGG8, the network of the CIFAR-10 experiments of the ANA paper."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from metasched.models.table import Shape


class VGG8(nn.Sequential):
    """conv w | pool | conv 2w - conv 2w | pool | conv 4w - conv 4w | pool | linear 8w - linear 8w - linear to classes.

    Each convolution (3x3, padding 1) and linear layer except the last has no bias and is followed by BatchNorm and
    ReLU; pools are 2x2 maxima. An adaptive average pool to 4x4 precedes the linear layers (the identity for 32x32
    images). Images need at least 16 pixels per side, because they are pooled three times.

    Source: Spallanzani et al., "Training Quantised Neural Networks with STE Variants: the Additive Noise Annealing
    Algorithm", CVPR 2022; repository pulp-platform/quantlab, ``systems/CIFAR10/VGG/vgg.py``.

    Args:
        in_channels: channels of the image.
        num_classes: number of outputs.
        width: w, channels of the first convolution; 128 in the paper.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 128) -> None:
        w = width
        modules: OrderedDict[str, nn.Module] = OrderedDict()

        def add_block(index: int, layer: nn.Module, norm: nn.Module) -> None:
            kind = "conv" if isinstance(layer, nn.Conv2d) else "linear"
            modules.update({f"{kind}{index}": layer, f"norm{index}": norm, f"act{index}": nn.ReLU()})

        convolutions = ((in_channels, w), (w, 2 * w), (2 * w, 2 * w), (2 * w, 4 * w), (4 * w, 4 * w))
        for i, (fan_in, fan_out) in enumerate(convolutions, start=1):
            add_block(i, nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False), nn.BatchNorm2d(fan_out))
            if i in (1, 3, 5):
                modules[f"pool{i}"] = nn.MaxPool2d(2)
        modules["average"] = nn.AdaptiveAvgPool2d(4)
        modules["flatten"] = nn.Flatten()
        for i, fan_in in ((6, 4 * w * 4 * 4), (7, 8 * w)):
            add_block(i, nn.Linear(fan_in, 8 * w, bias=False), nn.BatchNorm1d(8 * w))
        modules["linear8"] = nn.Linear(8 * w, num_classes)
        super().__init__(modules)


def build(shape: Shape, num_classes: int, width: int, _depth: int) -> VGG8:
    """The builder of the row in the table of models; see ModelSpec."""
    return VGG8(shape[0], num_classes, width)
