"""The integer network: a sequence of stages on integer tensors, and nothing else.

    images -> codes (-> trits) -> (weighted sum -> pooling -> thresholds)* -> logits

An integer y stands for the real number step * y; the stages know nothing of that, which is the point of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Encoding:
    """Trits of the codes: 1 where y >= high[k], -1 where y < low[k], else 0; [N, C, H, W] to [N, K C, H, W], k first.

    Attributes:
        low, high: [K], low[k] <= high[k].
    """

    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class Convolution:
    """Cross-correlation with zero padding, as torch.nn.Conv2d computes it, without bias.

    Attributes:
        name: of the layer.
        weight: [O, I / groups, kh, kw].
        steps: real size of a unit of the weight, for each of the O output channels.
        reach: no sum is beyond +-reach.
        stride, padding, dilation: (vertical, horizontal).
        groups: of channels.
    """

    name: str
    weight: Array
    steps: tuple[Fraction, ...]
    reach: int
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


@dataclass(frozen=True, eq=False)
class Linear:
    """Matrix product without bias.

    Attributes:
        name: of the layer.
        weight: [O, I].
        steps: real size of a unit of the weight, for each of the O outputs.
        reach: no sum is beyond +-reach.
        on_levels: False for a last layer that the method left in float: its weights are in fixed point.
    """

    name: str
    weight: Array
    steps: tuple[Fraction, ...]
    reach: int
    on_levels: bool = True


@dataclass(frozen=True)
class MaxPool:
    """Largest value of each window; padding never wins."""

    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True, eq=False)
class SumPool:
    """Average pooling times a common multiple of its window sizes: rows @ y @ columns.T on each channel.

    Attributes:
        name: of the pooling.
        rows: [H_out, H], each row sums to the same number.
        columns: [W_out, W], likewise.
        reach: no sum is beyond +-reach.
    """

    name: str
    rows: Array
    columns: Array
    reach: int


@dataclass(frozen=True, eq=False)
class Flip:
    """The negative sums of channels whose normalization has a negative gamma, so that all that follows can rise.

    Attributes:
        sign: [C], 1 or -1.
    """

    sign: Array


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Batch normalization and quantized activation: level k of channel c where t[c, k - 1] <= y < t[c, k].

    Attributes:
        name: of the activation.
        values: [C, n - 1], nondecreasing along k.
        levels: n increasing integers.
        step: real size of a unit of the levels.
    """

    name: str
    values: Array
    levels: tuple[int, ...]
    step: Fraction


@dataclass(frozen=True)
class Flatten:
    """[N, C, H, W] to [N, C H W]."""


@dataclass(frozen=True, eq=False)
class Logits:
    """Class scores multiplier * y + offset, in units of ``step``.

    Attributes:
        multiplier, offset: [C].
        step: real size of a unit.
    """

    multiplier: Array
    offset: Array
    step: Fraction


Stage = Encoding | Convolution | Linear | MaxPool | SumPool | Flip | Thresholds | Flatten | Logits


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """What is deployed.

    Attributes:
        image: (channels, height, width) of an input.
        step: real size of a unit of the input, a power of two.
        stages: in the order of the data flow.
    """

    image: tuple[int, int, int]
    step: Fraction
    stages: tuple[Stage, ...]

    @property
    def weighted(self) -> tuple[Convolution | Linear, ...]:
        """The layers that have weights."""
        return tuple(s for s in self.stages if isinstance(s, Convolution | Linear))

    def encode(self, images: npt.ArrayLike) -> Array:
        """The codes of real images: to the nearest multiple of ``step`` (ties to even), within 8 bits."""
        return np.clip(np.rint(np.asarray(images, np.float64) / float(self.step)), -128, 127).astype(np.int64)
