"""A network that an accelerator for ternary networks runs as a whole."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from metasched.models.convnet import STRIDE_2_FROM

CONVOLUTIONS = 7  # and a linear layer: the 8 that the accelerator runs in a pass
LARGEST_KERNEL = 3  # so that the linear layer is a convolution over all that is left of the image
_POOL_EARLY = 8  # pixels; what is larger is pooled after each convolution, and not only after every other one


class Thermometer(nn.Module):
    """A thermometer of trits: a value x becomes K channels, of which |round(x / d)|, at most K, have the sign of x.

        y_k = [x >= a_k] - [x < -a_k],    a_k = (k + 1/2) d,    k = 0 ... K - 1

    The others are 0. Channels of an image [N, C, H, W] are in the order [N, K, C, H, W].

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
        """The trits, in the dtype of the input; no derivative."""
        a = torch.tensor(self.thresholds, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
        x = x.unsqueeze(1)
        return ((x >= a).to(x.dtype) - (x < -a).to(x.dtype)).flatten(1, 2)


class CutieNet(nn.Sequential):
    """Thermometer, then 7 times 3x3 convolution - BatchNorm - (max pool) - ReLU, all of w channels, then linear.

    It is made for CUTIE, which runs 8 layers of at most 96 channels and 3x3 kernels on ternary tensors, and pools sums
    before it compares them: with ternary weights and activations, those of the last layer included, nothing but the
    thermometer is left to the host. For images of 16 pixels or more the first convolution has stride 2. 2x2 pools
    halve the image, as long as its sides are even, after each convolution but the first while it has more than 8 pixels
    a side, then after each odd one; the last two convolutions of an odd image are not padded. So 28x28 images end as
    3x3, 8x8, 32x32 and 64x64 ones as 2x2.

    Source of the limits: Scherer et al., CUTIE, 2021, arXiv 2011.01713, and pulp-platform/CUTIE,
    ``conf/cutie_conf.sv``. The network and its input encoding are ours.

    Args:
        in_channels: channels of the image.
        image_size: (height, width) in pixels.
        num_classes: number of outputs.
        width: w, at most 96 if the accelerator is to run it.

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
