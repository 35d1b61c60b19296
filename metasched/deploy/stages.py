"""The integer network: a sequence of stages on integer tensors.

    images -> codes (-> trits) -> (weighted sum -> pooling -> thresholds)* -> logits

Each stage reads the output of the one before it; a residual network goes back to an earlier one by ``Branch``, and adds
one by ``Add``.

An integer y represents the real number step * y; the stages use only the integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from metasched.core.errors import MetaschedError

Array = npt.NDArray[np.int64]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Encoding:
    """Ternary encoding: 1 where y >= high[k], -1 where y < low[k], else 0; [N, C, H, W] to [N, K C, H, W], k first.

    Attributes:
        low, high: [K], low[k] <= high[k].
    """

    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class Convolution:
    """Cross-correlation with zero padding and without bias, as in torch.nn.Conv2d.

    Attributes:
        name: name of the layer.
        weight: [O, I / groups, kh, kw].
        steps: real value of weight 1, for each of the O output channels.
        reach: largest possible absolute value of a sum.
        stride, padding, dilation: (vertical, horizontal).
        groups: number of groups of channels.
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
        name: name of the layer.
        weight: [O, I].
        steps: real value of weight 1, for each of the O outputs.
        reach: largest possible absolute value of a sum.
        on_levels: False for a last layer that is not quantized; its weights are in fixed point.
    """

    name: str
    weight: Array
    steps: tuple[Fraction, ...]
    reach: int
    on_levels: bool = True


@dataclass(frozen=True)
class MaxPool:
    """Maximum of each window, without the padding."""

    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True, eq=False)
class SumPool:
    """Average pooling times a common multiple of its window sizes: rows @ y @ columns.T for each channel.

    Attributes:
        name: name of the pooling layer.
        rows: [H_out, H]; all rows have the same sum.
        columns: [W_out, W]; all rows have the same sum.
        reach: largest possible absolute value of a sum.
    """

    name: str
    rows: Array
    columns: Array
    reach: int


@dataclass(frozen=True)
class Branch:
    """The output of an earlier stage again.

    Attributes:
        source: index of that stage; -1: the codes.
    """

    source: int


@dataclass(frozen=True, eq=False)
class Add:
    """ours * y + theirs * z for each channel, where z is the output of an earlier stage.

    Attributes:
        name: of the sum.
        source: index of the stage that puts out z; -1: the codes.
        ours, theirs: multipliers that put both on one scale, [C].
        reach: largest possible absolute value of a sum.
    """

    name: str
    source: int
    ours: Array
    theirs: Array
    reach: int


@dataclass(frozen=True)
class PadChannels:
    """[N, C, H, W] to [N, before + C + after, H, W], with channels of zeros."""

    before: int
    after: int


@dataclass(frozen=True, eq=False)
class Flip:
    """Negates the channels whose normalization has a negative gamma, so that all following stages are nondecreasing.

    Attributes:
        sign: [C], 1 or -1.
    """

    sign: Array


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Batch normalization and quantized activation: level k of channel c where t[c, k - 1] <= y < t[c, k].

    Attributes:
        name: name of the activation.
        values: t, [C, n - 1], nondecreasing along k.
        levels: n increasing integers.
        step: real value of level 1.
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
        step: real value of score 1.
    """

    multiplier: Array
    offset: Array
    step: Fraction


Stage = (
    Encoding
    | Convolution
    | Linear
    | MaxPool
    | SumPool
    | Branch
    | Add
    | PadChannels
    | Flip
    | Thresholds
    | Flatten
    | Logits
)


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A deployed network.

    Attributes:
        image: (channels, height, width) of an input.
        step: real value of 1 in the input codes, a power of two.
        stages: in the order of the data flow.
    """

    image: tuple[int, int, int]
    step: Fraction
    stages: tuple[Stage, ...]

    @property
    def weighted(self) -> tuple[Convolution | Linear, ...]:
        """The stages with weights."""
        return tuple(s for s in self.stages if isinstance(s, Convolution | Linear))

    def encode(self, images: npt.ArrayLike) -> Array:
        """Codes, int64 [N, C, H, W]: images / ``step``, rounded (ties to even) and clamped to 8 bits.

        Raises:
            MetaschedError: an image has NaN; infinity is the largest code.
        """
        real = np.asarray(images, np.float64)
        if np.isnan(real).any():
            raise MetaschedError("images", "have NaN, which has no code", "leave those images out")
        return np.clip(np.rint(real / float(self.step)), -128, 127).astype(np.int64)
