"""Residual sums in integers: two branches on one common scale, exactly, or with a proof that all decisions are exact.

A branch is A y + C for its integer y. If A1 and A2 of a channel are multiples of one unit, the sum is that unit times
m1 y1 + m2 y2, and C1 + C2 is folded into the thresholds that follow. Batch normalization has a root in A, and learned
scales have many digits; then m1 and m2 are A1 and A2 in fixed point, and the quantizer must come next, because only its
decisions have to be right:

    m1 y1 + m2 y2 >= t   if and only if   A1 y1 + A2 y2 + C1 + C2 >= theta        for all |y1| <= r1, |y2| <= r2

Rounding moves the left side by less than a bound delta. So t is right for all pairs whose sum is farther than delta
from theta; for each value of one summand, the nearest value of the other is the only one to look at. Pairs that are
nearer are decided in rational arithmetic, and t is moved past them; where no t fits, the sum is refused.

Average pooling of such a sum adds the integers of a window of n pixels, m1 Y1 + m2 Y2 with Y = y_1 + ... + y_n, for the
real A1 Y1 / n + A2 Y2 / n: the same form again, with summands that reach n times as far and a scale of fewer bits. A
third summand, a normalization or a convolution needs the sum itself; there the sum must be exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from math import isqrt
from typing import NamedTuple

import numpy as np

from metasched.deploy.folding import unsupported
from metasched.deploy.stages import Array
from metasched.deploy.thresholds import SLACK, Channel

_EXACT_BITS = 24  # float32, in which all but the sums in fixed point are exported
_BITS = 51  # of sums in fixed point, below the 53 of doubles
_ROOT_BITS = 300
_MOST = 2**17  # values of the summand with fewer of them
_REPLACE = "put an activation before the sum, or use fewer bits"


class Term(NamedTuple):
    """slope / sqrt(variance) * y + offset / sqrt(variance) + constant: a channel as a function of its integer y."""

    slope: Fraction
    offset: Fraction
    constant: Fraction
    variance: Fraction

    @property
    def factor(self) -> float:
        """A, rounded."""
        return float(self.slope) / math.sqrt(self.variance)

    def bounds(self, y: int) -> tuple[Fraction, Fraction]:
        """A lower and an upper bound of the value, much closer than doubles."""
        whole = self.slope * y + self.offset
        low = Fraction(isqrt((self.variance.numerator << 2 * _ROOT_BITS) // self.variance.denominator), 1 << _ROOT_BITS)
        ends = whole / low, whole / (low + Fraction(1, 1 << _ROOT_BITS))
        return self.constant + min(ends), self.constant + max(ends)


def term(channel: Channel) -> Term:
    """The term of a channel."""
    step, bias, norm = channel
    if norm is None:
        return Term(step, bias, Fraction(0), Fraction(1))
    return Term(norm.gamma * step, norm.gamma * (bias - norm.mean), norm.beta, norm.variance)


class Joined(NamedTuple):
    """A sum in fixed point, which only a quantizer may read.

    Attributes:
        name: of the sum.
        why: there is no exact one, and what makes one: (problem, fix).
        terms: two of each channel.
        reach: largest absolute values of the two integers.
        units: real value of 1, of each channel; powers of two.
        multipliers: of the two integers, [C] each.
    """

    name: str
    why: tuple[str, str]
    terms: tuple[tuple[Term, Term], ...]
    reach: tuple[int, int]
    units: tuple[Fraction, ...]
    multipliers: tuple[Array, Array]


def common_scale(
    ours: Sequence[Channel], theirs: Sequence[Channel], reach: tuple[int, int]
) -> tuple[list[Channel], tuple[Array, Array]] | None:
    """The channels of an exact sum and the multipliers of both summands, [C]; None where there are no exact ones.

    >>> (channel,), (m1, m2) = common_scale(
    ...     [Channel(Fraction(1, 4), Fraction(0), None)], [Channel(Fraction(1, 6), Fraction(1), None)], (3, 3)
    ... )
    >>> str(channel.step), int(m1[0]), int(m2[0])
    ('1/12', 3, 2)
    """
    if _normalized(ours, theirs):
        return None
    channels, rows = list[Channel](), list[tuple[int, int]]()
    for a, b in zip(ours, theirs, strict=True):
        p, q = a.step.numerator * b.step.denominator, b.step.numerator * a.step.denominator
        unit = Fraction(math.gcd(p, q), a.step.denominator * b.step.denominator)
        m1, m2 = int(a.step / unit), int(b.step / unit)
        if m1 * reach[0] + m2 * reach[1] > 2**_EXACT_BITS:
            return None
        channels.append(Channel(unit, a.bias + b.bias, None))
        rows.append((m1, m2))
    first, second = np.array(rows, np.int64).T
    return channels, (first, second)


def inexact(ours: Sequence[Channel], theirs: Sequence[Channel]) -> tuple[str, str]:
    """Why there is no exact sum, where ``common_scale`` has none, and what to change: (problem, fix)."""
    after = "put an activation right after the sum, or"
    if _normalized(ours, theirs):
        return "adds a branch that ends with batch normalization", f"{after} leave that normalization out"
    fix = f"{after} set method.scale: pow2 and method.activation_scale to a power of two, or use fewer bits"
    return f"adds branches whose scales have a common unit only for integers beyond 2^{_EXACT_BITS}", fix


def _normalized(ours: Sequence[Channel], theirs: Sequence[Channel]) -> bool:
    return any(channel.norm is not None for channel in (*ours, *theirs))


def joined(name: str, ours: Sequence[Channel], theirs: Sequence[Channel], reach: tuple[int, int]) -> Joined:
    """The sum in fixed point.

    Raises:
        MetaschedError: both summands have too many values for the proof.
    """
    terms = tuple((term(a), term(b)) for a, b in zip(ours, theirs, strict=True))
    return _in_fixed_point(name, inexact(ours, theirs), terms, reach)


def averaged(total: Joined, count: int) -> Joined:
    """The average over ``count`` pixels of a sum, as a function of both sums of integers.

    Raises:
        MetaschedError: as ``joined``.
    """
    terms = tuple((a._replace(slope=a.slope / count), b._replace(slope=b.slope / count)) for a, b in total.terms)
    reach = total.reach[0] * count, total.reach[1] * count
    return _in_fixed_point(total.name, total.why, terms, reach)


def _in_fixed_point(
    name: str, why: tuple[str, str], terms: tuple[tuple[Term, Term], ...], reach: tuple[int, int]
) -> Joined:
    if min(reach) > _MOST:
        problem = f"adds integers of up to {reach[0]} and {reach[1]}, too many to prove its thresholds exact"
        raise unsupported(name, problem, _REPLACE)
    units, rows = list[Fraction](), list[tuple[int, int]]()
    for a, b in terms:
        top = max(abs(a.factor), abs(b.factor)) or 1.0
        units.append(Fraction(2) ** (math.frexp(top)[1] + sum(reach).bit_length() - _BITS))
        rows.append((round(Fraction(a.factor) / units[-1]), round(Fraction(b.factor) / units[-1])))
    first, second = np.array(rows, np.int64).T
    return Joined(name, why, terms, reach, tuple(units), (first, second))


def reach_of(multipliers: tuple[Array, Array], reach: tuple[int, int]) -> int:
    """The largest absolute value of m1 y1 + m2 y2 in any channel, for |y1| and |y2| up to their reach."""
    pairs = zip(*(m.tolist() for m in multipliers), strict=True)
    return max(abs(a) * reach[0] + abs(b) * reach[1] for a, b in pairs)


def fold_joined(total: Joined, thresholds: Sequence[Fraction], reach: int) -> Array:
    """Integer thresholds, int64 [C, n - 1], of a sum followed by a hard quantizer with n - 1 real thresholds.

    Thresholds outside the range of sums, [-reach, reach], become -reach (always passed) or reach + 1 (never passed).

    Raises:
        MetaschedError: a threshold is so near to a sum that no integer threshold decides as it does.
    """
    values = [[_threshold(total, c, theta - SLACK, reach) for theta in thresholds] for c in range(len(total.terms))]
    return np.array(values, np.int64).reshape(len(total.terms), len(thresholds))


def _threshold(total: Joined, channel: int, theta: Fraction, reach: int) -> int:
    order = (1, 0) if total.reach[0] < total.reach[1] else (0, 1)  # the second has fewer values
    first, second = (total.terms[channel][i] for i in order)
    r1, r2 = (total.reach[i] for i in order)
    m1, m2 = (int(total.multipliers[i][channel]) for i in order)
    unit, parts = total.units[channel], [float(theta)]
    for t in (first, second):
        parts += [-float(t.constant), -float(t.offset) / math.sqrt(t.variance)]
    wanted, a, b = sum(parts), first.factor, second.factor  # a y1 + b y2 >= wanted
    magnitude = abs(a) * r1 + abs(b) * r2 + sum(map(abs, parts))
    delta = float(unit) * (r1 + r2 + 1) / 2 + 2.0**-47 * magnitude  # of rounding the multipliers, and of doubles
    value = round(Fraction(wanted) / unit)
    y2 = np.arange(-r2, r2 + 1)
    missing = wanted - b * y2
    with np.errstate(all="ignore"):
        y1 = np.clip(np.rint(missing / a), -r1, r1) if a else np.zeros(len(y2))
    near = np.flatnonzero(np.abs(a * y1 - missing) <= 2 * delta)
    if len(near) and 0 < abs(a) <= 8 * delta:
        raise _no_threshold(total, channel)
    above, below = reach + 1, -reach - 1  # the smallest sum that passes and the largest that does not, of those
    for i in near.tolist():
        low, high = (x + y for x, y in zip(first.bounds(int(y1[i])), second.bounds(int(y2[i])), strict=True))
        z = m1 * int(y1[i]) + m2 * int(y2[i])
        if low >= theta:
            above = min(above, z)
        elif high < theta:
            below = max(below, z)
        else:
            raise _no_threshold(total, channel)
    moved = min(max(value, below + 1), above) if len(near) else value
    if below >= above or (len(near) and abs(moved - value) * float(unit) > delta):
        raise _no_threshold(total, channel)
    return min(max(moved, -reach), reach + 1)


def _no_threshold(total: Joined, channel: int) -> Exception:
    problem = f"has in channel {channel} sums too near to a threshold for a common scale of {_BITS} bits"
    return unsupported(total.name, problem, _REPLACE)
