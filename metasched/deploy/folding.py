"""Conversion of a quantized network into integer stages, layer by layer: the state of the conversion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.layer import weight_key
from metasched.deploy.stages import Array, Branch, Logits, Stage
from metasched.deploy.thresholds import Channel
from metasched.network.flat import Tensors
from metasched.quantizers.hard import hard
from metasched.quantizers.levels import LevelSet

if TYPE_CHECKING:
    from metasched.deploy.sums import Joined

FIXED_POINT_BITS = 24  # of weights that are not quantized, without the sign
_LOGIT_BITS = 50  # doubles, which runtimes without 64-bit integers use, are exact to 53 bits
_FINEST = 2**8  # levels that are not multiples of 1 / 2^8 do not fit in 8 bits


def unsupported(name: str, problem: str, fix: str = "") -> MetaschedError:
    """The error for a layer that has no integer form."""
    known = "deploy Conv2d, Linear, BatchNorm, activations, poolings and sums of two tensors"
    return MetaschedError(f"model.{name}" if name else "model", problem, fix or known)


class Activation(NamedTuple):
    """A quantized activation: its levels, the value of level 1, and the bounds of the function before them."""

    levels: LevelSet
    unit: Fraction
    low: float = -math.inf
    high: float = math.inf


class Value(NamedTuple):
    """A tensor of the network: the stage that puts it out, and what its integers mean, see ``Folding``."""

    stage: int
    shape: tuple[int, ...]
    step: Fraction
    largest: int
    open: list[Channel] | None
    joined: Joined | None

    @property
    def channels(self) -> list[Channel]:
        """The meaning of the integers of each channel."""
        return self.open or [Channel(self.step, Fraction(0), None)] * self.shape[0]


@dataclass
class Folding:
    """The stages so far, and the meaning of the integers that the last stage outputs.

    ``weights`` has the levels and the scale [C_out or 1, 1, ...] of each layer whose weight is quantized, by its name;
    ``activation`` tells what a module puts out, None for one that is not quantized.

    If ``open`` is None, the integers are levels or codes, and an integer y means step * y. Otherwise they are sums that
    are not quantized by an activation yet, and ``open`` gives the meaning for each channel. ``joined`` is that of a sum
    of two branches in fixed point.
    """

    tensors: Tensors
    weights: Mapping[str, tuple[LevelSet, torch.Tensor]]
    activation: Callable[[nn.Module], Activation | None]
    shape: tuple[int, ...]
    step: Fraction
    largest: int = 128
    stages: list[Stage] = field(default_factory=list)
    open: list[Channel] | None = None
    joined: Joined | None = None

    def value(self) -> Value:
        """What the last stage puts out."""
        return Value(len(self.stages) - 1, self.shape, self.step, self.largest, self.open, self.joined)

    def go_to(self, value: Value) -> None:
        """Makes an earlier value that of the last stage."""
        if value.stage != len(self.stages) - 1:
            self.stages.append(Branch(value.stage))
        _, self.shape, self.step, self.largest, self.open, self.joined = value

    def weight(self, name: str) -> tuple[Array, tuple[Fraction, ...], bool]:
        """Integer weights of a layer, the real value of 1 for each output, and whether the weights are on levels."""
        w = self.tensors[weight_key(name)]
        if not bool(w.isfinite().all()):
            raise unsupported(name, "has non-finite weights", "train it again")
        if name not in self.weights:
            unit = Fraction(2) ** (math.frexp(float(w.abs().max()))[1] - FIXED_POINT_BITS)
            return _integers(w.double() / float(unit)), (unit,) * len(w), False
        levels, scale = self.weights[name]
        finest = unit_of(name, levels.levels)
        q = hard(w.double() / scale.double(), levels)
        if not torch.equal(q.to(w.dtype) * scale, w):
            raise unsupported(name, "has hardened weights that are not on its levels", "correct the method's harden")
        if not -128 <= levels.levels[0] / finest <= levels.levels[-1] / finest <= 127:
            raise unsupported(name, "has weight levels beyond 8 bits", "set method.levels to fewer bits")
        scales = [Fraction(float(s)) * finest for s in scale.flatten().tolist()]
        return _integers(q / float(finest)), tuple(scales if len(scales) > 1 else scales * len(w)), True

    def sums(self, name: str, weight: Array, steps: tuple[Fraction, ...]) -> int:
        """Starts the sums of a weighted layer; returns the largest absolute value of a sum."""
        if self.open is not None:
            problem = "follows a layer whose activation is not quantized"
            raise unsupported(name, problem, "set method.activation_levels, and quantize.first: true")
        bias = self.tensors.get(f"{name}.bias")
        offsets = [0.0] * len(weight) if bias is None else bias.tolist()
        self.open = [Channel(self.step * s, exact(name, b), None) for s, b in zip(steps, offsets, strict=True)]
        self.largest = max(1, int(np.abs(weight).reshape(len(weight), -1).sum(1).max()) * self.largest)
        return self.largest

    def finish(self) -> None:
        """Adds the logits after the last sums."""
        if self.open is None or len(self.shape) != 1:
            raise unsupported("", "does not end with class scores", "end the model with a linear layer")
        self.stages.append(_logits(self.open, self.largest))


def exact(name: str, value: float) -> Fraction:
    """The exact value of a parameter of a layer.

    Raises:
        MetaschedError: it is not finite.
    """
    if not math.isfinite(value):
        raise unsupported(name, "has non-finite parameters or statistics", "train it again")
    return Fraction(value)


def unit_of(name: str, levels: tuple[float, ...]) -> Fraction:
    """The largest power of two up to 1 of which all levels of the layer ``name`` are multiples.

    Raises:
        MetaschedError: there is none that is large enough for 8 bits.
    """
    denominator = max(Fraction(q).denominator for q in levels)
    if denominator > _FINEST:
        problem = f"has levels that are no multiples of 1 / {_FINEST}, so no integers of 8 bits"
        raise unsupported(name, problem, "set method.levels or method.activation_levels to others, such as int4")
    return Fraction(1, denominator)


def _integers(x: torch.Tensor) -> Array:
    return x.round().to(torch.int64).cpu().numpy()


def _logits(channels: list[Channel], reach: int) -> Logits:
    """The logits: exact if all channels have the same unit, else with as many fraction bits as the sums allow."""
    if len({c.step for c in channels}) == 1 and not any(c.bias or c.norm for c in channels):
        return Logits(np.ones(len(channels), np.int64), np.zeros(len(channels), np.int64), channels[0].step)
    affine = [_affine(c) for c in channels]
    largest = max(abs(slope) for slope, _ in affine) or Fraction(1)
    unit = largest / 2 ** max(0, min(FIXED_POINT_BITS, _LOGIT_BITS - reach.bit_length()))
    multiplier, offset = ([round(value / unit) for value in column] for column in zip(*affine, strict=True))
    if any(abs(m) * reach + abs(o) >= 2**53 for m, o in zip(multiplier, offset, strict=True)):
        problem = "has class scores with offsets that are too large in comparison with the weights"
        raise MetaschedError("model", problem, "train the last layer again")
    return Logits(np.array(multiplier, np.int64), np.array(offset, np.int64), unit)


def _affine(channel: Channel) -> tuple[Fraction, Fraction]:
    """Slope and offset of the real value of a sum; the root in a normalization is rounded to a double."""
    step, bias, norm = channel
    if norm is None:
        return step, bias
    slope = norm.gamma / Fraction(math.sqrt(norm.variance))
    return slope * step, slope * (bias - norm.mean) + norm.beta
