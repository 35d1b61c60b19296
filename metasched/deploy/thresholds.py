"""Converts batch normalization and a hard quantizer to integer thresholds, exactly.

The output of the quantizer is level k + 1 or higher where gamma (e y + b - mean) / sigma + beta >= theta, sigma =
sqrt(var + eps). For gamma > 0 that is

    y >= (mean - b) / e + (theta - beta) sigma / (gamma e)

and an integer y satisfies this if it is at least the ceiling of the right side. For gamma = 0 the condition holds for
all y or for none. Everything except sigma is rational; the ceiling of p + c sqrt(v) is computed with an integer square
root. For gamma < 0 the sum is negated together with mean, gamma and b, which gives the first case.

A sum equal to a threshold passes it. So does a sum that is smaller by less than ``SLACK``, a difference that float32
does not resolve: 3 times a scale of 1/6, rounded to a double, is less than 1/2, but PyTorch rounds it to 1/2.

Source: quantlib, ``backends/cutie/cutie_export.py``. We differ: it rounds in floating point, divides by gamma = 0, and
negates the weights for gamma < 0; we negate the sum, so that max pooling before the normalization is unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt
from typing import NamedTuple

import numpy as np

from metasched.deploy.stages import Array

SLACK = Fraction(1, 2**30)  # in the unit of activations before quantization


class Norm(NamedTuple):
    """Batch normalization of one channel; ``variance`` includes eps."""

    gamma: Fraction
    beta: Fraction
    mean: Fraction
    variance: Fraction


class Channel(NamedTuple):
    """The real value of an integer sum y of a channel: norm(step * y + bias)."""

    step: Fraction
    bias: Fraction
    norm: Norm | None

    def flipped(self) -> Channel:
        """The same value as a function of -y."""
        assert self.norm is not None
        gamma, beta, mean, variance = self.norm
        return Channel(self.step, -self.bias, Norm(-gamma, beta, -mean, variance))


def ceil_with_root(p: Fraction, c: Fraction, v: Fraction) -> int:
    """The exact ceiling of p + c sqrt(v), for v >= 0.

    >>> ceil_with_root(Fraction(1, 2), Fraction(-1), Fraction(2)), ceil_with_root(Fraction(0), Fraction(1), Fraction(4))
    (0, 2)
    """
    square = c * c * v  # u / w, whose root is sqrt(u w) / w
    q, w = p.denominator, square.denominator
    radicand = q * q * square.numerator * w
    root = -isqrt(radicand) if c < 0 or not radicand else isqrt(radicand - 1) + 1  # rounded up
    return -(-(p.numerator * w + root) // (q * w))


def fold(channels: Sequence[Channel], thresholds: Sequence[Fraction], reach: int) -> Array:
    """Integer thresholds, int64 [C, n - 1], of C channels followed by a hard quantizer with n - 1 real thresholds.

    Thresholds outside the range of sums, [-reach, reach], become -reach (always passed) or reach + 1 (never passed).
    """
    values = [[min(max(_smallest(c, t - SLACK, reach), -reach), reach + 1) for t in thresholds] for c in channels]
    return np.array(values, np.int64).reshape(len(channels), len(thresholds))


def _smallest(channel: Channel, theta: Fraction, reach: int) -> int:
    """The smallest integer sum y that passes the threshold theta."""
    step, bias, norm = channel
    if norm is None:
        return -((bias - theta) // step)
    assert norm.gamma >= 0, "flip the channel first"
    if norm.gamma == 0:
        return -reach if norm.beta >= theta else reach + 1
    return ceil_with_root((norm.mean - bias) / step, (theta - norm.beta) / (norm.gamma * step), norm.variance)
