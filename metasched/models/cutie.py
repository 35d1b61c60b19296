"""A network that an accelerator for ternary networks can run completely."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from metasched.models.convnet import STRIDE_2_FROM
from metasched.models.table import Shape

CONVOLUTIONS = 7  # with the linear layer, the 8 layers that the accelerator runs in one pass
LARGEST_KERNEL = 3  # also of the last feature map: the linear layer is a convolution over all of it
_POOL_EARLY = 8  # pixels; larger feature maps are pooled after each convolution, smaller ones after every other one


class Thermometer(nn.Module):
    """Ternary thermometer code: a value x becomes K channels, of which min(K, |round(x / d)|) equal the sign of x.

        y_k = [x >= a_k] - [x < -a_k],    a_k = (k + 1/2) d,    k = 0 ... K - 1

    The others are 0. An image [N, C, H, W] becomes [N, K C, H, W], with channels in the order (K, C).

    Args:
        steps: K.
        size: d, in units of the input.

    >>> Thermometer(3, 0.5)(torch.tensor([0.2, 0.6, -9.0]).reshape(1, 1, 1, 3))[0, :, 0].T.tolist()
    [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, -1.0, -1.0]]
    """

    def __init__(self, steps: int = 8, size: float = 0.25) -> None:
        super().__init__()
        self.thresholds = tuple((k + 0.5) * size for k in range(steps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The code [N, K C, H, W] in {-1, 0, 1} of images [N, C, H, W]; same dtype, no derivative."""
        a = torch.tensor(self.thresholds, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
        x = x.unsqueeze(1)
        return ((x >= a).to(x.dtype) - (x < -a).to(x.dtype)).flatten(1, 2)


class CutieNet(nn.Sequential):
    """Thermometer, then 7 times 3x3 convolution - BatchNorm - (max pool) - ReLU, all of w channels, then linear.

    It is designed for CUTIE, which runs 8 layers of at most 96 channels and 3x3 kernels on ternary tensors, and pools
    sums before it compares them with thresholds. If all weights and activations are ternary, including those of the
    last layer, the host computes only the thermometer code. For images of 16 pixels or more the first convolution has
    stride 2. 2x2 pools halve feature maps with even sides: after each convolution except the first while they have more
    than 8 pixels per side, then after each odd convolution. If the sides are odd, the last two convolutions are not
    padded. Feature maps end as 3x3 for 28x28 images and as 2x2 for 8x8, 32x32 and 64x64 images.

    Source of the limits: Scherer et al., CUTIE, 2021, arXiv 2011.01713, and pulp-platform/CUTIE,
    ``conf/cutie_conf.sv``. The network and its input encoding are ours.

    Args:
        in_channels: channels of the image.
        image_size: (height, width) in pixels.
        num_classes: number of outputs.
        width: w, channels of each convolution; at most 96 for the accelerator.

    >>> [m.out_channels for m in CutieNet(1, (28, 28), num_classes=10, width=16) if isinstance(m, nn.Conv2d)]
    [16, 16, 16, 16, 16, 16, 16]
    """

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int, width: int) -> None:
        encoding = Thermometer()
        modules: OrderedDict[str, nn.Module] = OrderedDict(encoding=encoding)
        channels, size = in_channels * len(encoding.thresholds), image_size
        for i in range(1, CONVOLUTIONS + 1):
            stride = 2 if i == 1 and min(size) >= STRIDE_2_FROM else 1
            large, even = min(size) > LARGEST_KERNEL, not any(n % 2 for n in size)
            padding = 0 if large and not even and i > CONVOLUTIONS - 2 else 1
            modules[f"conv{i}"] = nn.Conv2d(channels, width, 3, stride=stride, padding=padding, bias=False)
            modules[f"norm{i}"] = nn.BatchNorm2d(width)
            channels, size = width, tuple((n + 2 * padding - 3) // stride + 1 for n in size)
            if large and even and i > 1 and (i % 2 == 1 or min(size) > _POOL_EARLY):
                modules[f"pool{i}"] = nn.MaxPool2d(2)
                size = tuple(n // 2 for n in size)
            modules[f"act{i}"] = nn.ReLU()
        modules["flatten"] = nn.Flatten()
        modules[f"linear{CONVOLUTIONS + 1}"] = nn.Linear(width * size[0] * size[1], num_classes)
        super().__init__(modules)


def build(shape: Shape, num_classes: int, width: int, _depth: int) -> CutieNet:
    """The builder of the row in the table of models; see ModelSpec."""
    return CutieNet(shape[0], shape[1:], num_classes, width)
