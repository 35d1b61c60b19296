"""Batch normalization and a hard quantizer as integer thresholds, computed exactly.

The quantizer is on level k + 1 or higher where gamma (e y + b - mean) / sigma + beta >= theta, sigma = sqrt(var + eps).
For gamma > 0 that is

    y >= (mean - b) / e + (theta - beta) sigma / (gamma e)

and for an integer y, y >= the ceiling of it; for gamma = 0 it holds everywhere or nowhere. All but sigma is rational;
the ceiling of p + c sqrt(v) is that of an integer square root. For gamma < 0 the sum is negated, and with it mean,
gamma and b, which makes it the first case.

A sum that lies on a threshold passes it. So does one that lies below it by less than ``SLACK``, which float32 could not
tell: 3 times a scale of 1/6, rounded to a double, is less than 1/2, but meant, and by PyTorch taken, to be 1/2.

Sources: quantlib, ``backends/cutie/cutie_export.py``, which rounds in floating point, divides by gamma = 0, and negates
the weights for gamma < 0; we negate the sum, so that max pooling before the normalization stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt
from typing import NamedTuple

import numpy as np

from metasched.deploy.stages import Array

SLACK = Fraction(1, 2**30)  # in real units, as the activations are before they are quantized


class Norm(NamedTuple):
    """Batch normalization of one channel; ``variance`` with eps added."""

    gamma: Fraction
    beta: Fraction
    mean: Fraction
    variance: Fraction


class Channel(NamedTuple):
    """The real number that an integer sum y of a channel stands for: norm(step * y + bias)."""

    step: Fraction
    bias: Fraction
    norm: Norm | None

    def flipped(self) -> Channel:
        """The same number as a function of -y."""
        assert self.norm is not None
        gamma, beta, mean, variance = self.norm
        return Channel(self.step, -self.bias, Norm(-gamma, beta, -mean, variance))


def ceil_with_root(p: Fraction, c: Fraction, v: Fraction) -> int:
    """The smallest integer that is at least p + c sqrt(v), v >= 0, exactly.

    >>> ceil_with_root(Fraction(1, 2), Fraction(-1), Fraction(2)), ceil_with_root(Fraction(0), Fraction(1), Fraction(4))
    (0, 2)
    """
    square = c * c * v  # u / w, whose root is sqrt(u w) / w
    q, w = p.denominator, square.denominator
    radicand = q * q * square.numerator * w
    root = -isqrt(radicand) if c < 0 or not radicand else isqrt(radicand - 1) + 1  # rounded up
    return -(-(p.numerator * w + root) // (q * w))


def fold(channels: Sequence[Channel], thresholds: Sequence[Fraction], reach: int) -> Array:
    """Integer thresholds [C, n - 1] of channels that a hard quantizer with these real thresholds follows.

    Thresholds that no sum within +-reach can tell apart are put at -reach (always passed) and reach + 1 (never).
    """
    values = [[min(max(_smallest(c, t - SLACK, reach), -reach), reach + 1) for t in thresholds] for c in channels]
    return np.array(values, np.int64).reshape(len(channels), len(thresholds))


def _smallest(channel: Channel, theta: Fraction, reach: int) -> int:
    """The smallest y at which the threshold theta is passed."""
    step, bias, norm = channel
    if norm is None:
        return -((bias - theta) // step)
    assert norm.gamma >= 0, "flip the channel first"
    if norm.gamma == 0:
        return -reach if norm.beta >= theta else reach + 1
    return ceil_with_root((norm.mean - bias) / step, (theta - norm.beta) / (norm.gamma * step), norm.variance)
