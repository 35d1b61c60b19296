"""Integer networks with scales and zero points: codes of 8 bits, biases of 32 bits, and a multiplier in fixed point.

A code q in 0 .. 255 stands for r = S (q - Z), where 0 has a code of its own, Z. With codes q of the inputs, integers w
of the weights, of a scale S_w for each output channel, and a bias b of the scale S S_w 2^-k, a layer computes

    a = 2^k sum w (q - Z) + b                          in 32 bits
    q' = clip(Z' + (a M_0 + 2^(n - 1)) >> n)           M = S S_w 2^-k / S' = M_0 2^-n,   |M_0| in [2^30, 2^31)

The clip is that of the activation that follows: a ReLU keeps codes from Z' on. S_w and M_0 are negative where a
normalization turns the sign of a channel, since -w may not fit in 8 bits where w does. No floating-point number takes
part between the codes of the input and those of the output.

Source: Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference. CVPR
2018, arXiv 1712.05877, sections 2.2 to 2.4. We differ: weights have a scale for each output channel; k is 0 there, as
weights have 8 bits: with few levels S S_w is too coarse for a bias; the product with M_0 is rounded once, half up,
where gemmlowp rounds it twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from metasched.deploy import simulator
from metasched.deploy.stages import Array, Convolution, Flatten, Linear, MaxPool, SumPool

TOP = 255  # the highest code
_MOST = 62  # bits to the right by which nothing of an int64 is left


class Affine(NamedTuple):
    """What codes stand for: r = scale (q - zero).

    >>> Affine.of(-1.0, 2.0)
    Affine(scale=0.011764705882352941, zero=85)
    """

    scale: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> Affine:
        """The codes for values from ``low`` to ``high``, both moved so that 0 is among them and has a code."""
        low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            return cls(1.0, 0)
        scale = (high - low) / TOP
        return cls(scale, round(-low / scale))

    def codes(self, x: npt.NDArray[np.floating]) -> Array:
        """The nearest codes of values [...]."""
        return np.clip(np.rint(np.asarray(x, np.float64) / self.scale) + self.zero, 0, TOP).astype(np.int64)

    def values(self, codes: Array) -> npt.NDArray[np.float64]:
        """What codes [...] stand for."""
        return self.scale * (codes - self.zero).astype(np.float64)


class Multiplier(NamedTuple):
    """M = m0 2^-shift for each output channel: |m0| below 2^31, 1 <= shift <= 62."""

    m0: Array
    shift: Array

    @classmethod
    def of(cls, factors: list[float]) -> Multiplier:
        """The nearest ones to factors between -2^30 and 2^30."""
        found = [_fixed_point(m) for m in factors]
        return cls(*(np.array(column, np.int64) for column in zip(*found, strict=True)))

    def __call__(self, a: Array) -> Array:
        """The nearest integer to M a, half up, for int32 numbers a [N, C, ...]."""
        m0, shift = (t.reshape(-1, *[1] * (a.ndim - 2)) for t in self)
        return (a * m0 + (1 << (shift - 1))) >> shift


def _fixed_point(m: float) -> tuple[int, int]:
    """M_0 and n of a factor; (0, 1) for one so small that no product of 32 bits reaches 1/2."""
    mantissa, exponent = math.frexp(abs(m))
    m0, shift = round(mantissa * 2**31), 31 - exponent
    if m0 == 2**31:
        m0, shift = 2**30, shift - 1
    assert shift >= 1, m
    return (m0 if m > 0 else -m0, shift) if m0 and shift <= _MOST else (0, 1)


@dataclass(frozen=True, eq=False)
class Weighted:
    """A convolution or linear layer, with the normalization and the activation after it.

    Attributes:
        sums: its integer weights and geometry.
        lift: k.
        bias: int32 [C_out].
        multiplier: from its sums to codes.
        before, after: what the codes of its input and of its output stand for.
        low, high: codes to which the activation clips.
    """

    sums: Convolution | Linear
    lift: int
    bias: Array
    multiplier: Multiplier
    before: Affine
    after: Affine
    low: int = 0
    high: int = TOP


@dataclass(frozen=True)
class Clip:
    """An activation of its own: codes from ``low`` to ``high``."""

    low: int
    high: int


AffineStage = Weighted | Clip | MaxPool | SumPool | Flatten


@dataclass(frozen=True, eq=False)
class AffineNetwork:
    """An integer network with scales and zero points.

    Attributes:
        before, after: what the codes of its input and of its output stand for.
        stages: each reads the output of the one before it.
    """

    before: Affine
    after: Affine
    stages: tuple[AffineStage, ...]

    def outputs(self, codes: Array) -> Iterator[Array]:
        """The codes that each stage puts out, int64 [N, ...], for codes of inputs, int64 [N, ...]."""
        for stage in self.stages:
            yield (codes := apply(stage, codes))

    def __call__(self, x: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """The outputs [N, ...] for inputs [N, ...]: codes in between."""
        *_, codes = self.outputs(self.before.codes(x))
        return self.after.values(codes)

    @property
    def bytes(self) -> int:
        """Weights of 8 bits; for each output channel a bias and M_0 of 32 bits and a shift of 8."""
        layers = [s for s in self.stages if isinstance(s, Weighted)]
        return sum(s.sums.weight.size + 9 * len(s.bias) for s in layers)


def apply(stage: AffineStage, codes: Array) -> Array:
    """The codes that a stage puts out for codes [N, ...]."""
    match stage:
        case Weighted():
            a = simulator.apply(stage.sums, codes - stage.before.zero)  # padding adds zeros, which have a code
            a = (a << stage.lift) + stage.bias.reshape(-1, *[1] * (a.ndim - 2))
            return np.clip(stage.multiplier(a) + stage.after.zero, stage.low, stage.high)
        case Clip():
            return np.clip(codes, stage.low, stage.high)
        case SumPool():
            window = int(stage.rows[0].sum() * stage.columns[0].sum())
            return (2 * simulator.apply(stage, codes) + window) // (2 * window)
        case MaxPool() | Flatten():
            return simulator.apply(stage, codes)
