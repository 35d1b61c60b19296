"""A quantized network folded into integer stages, layer by layer: what the integers at its end stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch

from metasched.core.errors import MetaschedError
from metasched.core.layer import weight_key
from metasched.deploy.stages import Array, Logits, Stage
from metasched.deploy.thresholds import Channel
from metasched.methods.tensors import LayerQuantizer
from metasched.network.quantize import QuantizedNetwork, Tensors
from metasched.quantizers.stair import hard

FIXED_POINT_BITS = 24  # of weights that the method leaves in float, without the sign
_LOGIT_BITS = 50  # doubles, in which runtimes without 64-bit integers compute, are exact to 53
_FINEST = 2**8  # a level is a multiple of 1 / 2^k, k <= 8, or the weights do not fit in 8 bits


def unsupported(name: str, problem: str, fix: str = "") -> MetaschedError:
    """The error for a layer without integer form."""
    known = "deploy a sequence of Conv2d or Linear, BatchNorm, activation and pooling modules"
    return MetaschedError(f"model.{name}" if name else "model", problem, fix or known)


@dataclass
class Folding:
    """The stages so far, and what the integers at their end stand for.

    ``open`` is None where they are levels or codes, ``step`` apart; otherwise they are sums that no activation has
    quantized yet.
    """

    network: QuantizedNetwork
    quantizer: LayerQuantizer
    tensors: Tensors
    state: Tensors
    shape: tuple[int, ...]
    step: Fraction
    largest: int = 128
    stages: list[Stage] = field(default_factory=list)
    open: list[Channel] | None = None

    def weight(self, name: str) -> tuple[Array, tuple[Fraction, ...], bool]:
        """Integer weights of a layer, the real size of a unit for each output, and whether they are on levels."""
        w = self.tensors[weight_key(name)]
        if not bool(w.isfinite().all()):
            raise unsupported(name, "has weights that are not finite", "train it again")
        if name not in {layer.name for layer in self.network.layers}:
            unit = Fraction(2) ** (math.frexp(float(w.abs().max()))[1] - FIXED_POINT_BITS)
            return _integers(w.double() / float(unit)), (unit,) * len(w), False
        scale = self.state[f"{name}/scale"]
        levels, finest = self.quantizer.levels, unit_of(self.quantizer.levels.levels)
        q = hard(w.double() / scale.double(), levels)
        if not torch.equal(q.to(w.dtype) * scale, w):
            raise unsupported(name, "has hardened weights that are not on its levels", "see the method's harden")
        if not -128 <= levels.levels[0] / finest <= levels.levels[-1] / finest <= 127:
            raise unsupported(name, "has weight levels beyond 8 bits", "set method.levels to fewer bits")
        scales = [Fraction(float(s)) * finest for s in scale.flatten().tolist()]
        return _integers(q / float(finest)), tuple(scales if len(scales) > 1 else scales * len(w)), True

    def sums(self, name: str, weight: Array, steps: tuple[Fraction, ...]) -> int:
        """Opens the sums of a weighted layer; returns their reach."""
        if self.open is not None:
            problem = "follows a layer whose activation is not quantized"
            raise unsupported(name, problem, "set method.activation_levels, and quantize.first: true")
        bias = self.tensors.get(f"{name}.bias")
        offsets = [0.0] * len(weight) if bias is None else bias.tolist()
        self.open = [Channel(self.step * s, exact(name, b), None) for s, b in zip(steps, offsets, strict=True)]
        self.largest = max(1, int(np.abs(weight).reshape(len(weight), -1).sum(1).max()) * self.largest)
        return self.largest

    def finish(self) -> None:
        """Makes logits of the sums at the end."""
        if self.open is None or len(self.shape) != 1:
            raise unsupported("", "does not end with class scores", "let a linear layer be the last one")
        self.stages.append(_logits(self.open, self.largest))


def exact(name: str, value: float) -> Fraction:
    """A parameter of a layer as it is; MetaschedError if it is not finite."""
    if not math.isfinite(value):
        raise unsupported(name, "has parameters or statistics that are not finite", "train it again")
    return Fraction(value)


def unit_of(levels: tuple[float, ...]) -> Fraction:
    """The largest power of two up to 1 of which all levels are multiples."""
    denominator = max(Fraction(q).denominator for q in levels)
    return Fraction(1, min(denominator, _FINEST))


def _integers(x: torch.Tensor) -> Array:
    return x.round().to(torch.int64).cpu().numpy()


def _logits(channels: list[Channel], reach: int) -> Logits:
    """The scores, exact where one unit serves all, else with as many fraction bits as leave room for the sums."""
    if len({c.step for c in channels}) == 1 and not any(c.bias or c.norm for c in channels):
        return Logits(np.ones(len(channels), np.int64), np.zeros(len(channels), np.int64), channels[0].step)
    affine = [_affine(c) for c in channels]
    largest = max(abs(slope) for slope, _ in affine) or Fraction(1)
    unit = largest / 2 ** max(0, min(FIXED_POINT_BITS, _LOGIT_BITS - reach.bit_length()))
    multiplier, offset = ([round(value / unit) for value in column] for column in zip(*affine, strict=True))
    if any(abs(m) * reach + abs(o) >= 2**53 for m, o in zip(multiplier, offset, strict=True)):
        problem = "has class scores whose offsets are too large for their weights to matter"
        raise MetaschedError("model", problem, "train the last layer again")
    return Logits(np.array(multiplier, np.int64), np.array(offset, np.int64), unit)


def _affine(channel: Channel) -> tuple[Fraction, Fraction]:
    """Slope and offset of what a sum stands for; a normalization's root is rounded to a double."""
    step, bias, norm = channel
    if norm is None:
        return step, bias
    slope = norm.gamma / Fraction(math.sqrt(norm.variance))
    return slope * step, slope * (bias - norm.mean) + norm.beta
