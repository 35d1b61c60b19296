"""Level sets: the values that a quantized tensor may take, in units of its scale.

Levels increase strictly; thresholds are the midpoints between neighbours. For integer levels this gives q + 1/2, as in
ANA; for powers of two it gives INQ's rule: for neighbours a < b, |w| in [(a + b) / 2, 3b / 2) is quantized to b. Values
outside the range are clamped to the outermost level. (We differ from INQ-pytorch, which quantizes |w| >= 3/2 of the top
level to 0, because a weight may grow during retraining.)
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

from metasched.core.errors import MetaschedError


@dataclass(frozen=True)
class LevelSet:
    """Sorted levels q_0 < ... < q_{n-1} in units of the scale.

    >>> ternary().thresholds
    (-0.5, 0.5)
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.levels) >= 2, "a quantizer needs at least two levels"
        assert all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False)), "levels must increase"
        assert (
            self.thresholds and self.rounds in (True, False) and self.narrowest > 0
        )  # computed now: torch.compile takes no locks

    @cached_property
    def thresholds(self) -> tuple[float, ...]:
        """Midpoints between neighbouring levels: x >= threshold k is quantized to level k + 1 or higher."""
        return tuple((a + b) / 2 for a, b in zip(self.levels, self.levels[1:], strict=False))

    @cached_property
    def jumps(self) -> tuple[float, ...]:
        """Heights q_{k+1} - q_k of the stair's steps."""
        return tuple(b - a for a, b in zip(self.levels, self.levels[1:], strict=False))

    @cached_property
    def even(self) -> float:
        """The distance of neighbouring levels if it is the same for all, and a power of two; else 0."""
        jump = self.jumps[0]
        return jump if all(d == jump for d in self.jumps) and math.frexp(jump)[0] == 0.5 else 0.0

    @cached_property
    def rounds(self) -> bool:
        """Whether quantizing is rounding: the levels are multiples of their distance, which is a power of two."""
        return self.even > 0 and self.levels[0] % self.even == 0

    @cached_property
    def narrowest(self) -> float:
        """The smallest distance of neighbouring thresholds; infinite for two levels, which have a single threshold."""
        return min((b - a for a, b in zip(self.thresholds, self.thresholds[1:], strict=False)), default=math.inf)

    @property
    def bits(self) -> float:
        """log2 of the number of levels."""
        return math.log2(len(self.levels))


def ternary() -> LevelSet:
    """Levels {-1, 0, 1}: two bits, signed, balanced."""
    return LevelSet((-1.0, 0.0, 1.0))


def binary() -> LevelSet:
    """Levels {-1, 1}: one bit."""
    return LevelSet((-1.0, 1.0))


def integers(bits: int, *, signed: bool, balanced: bool) -> LevelSet:
    """The integers of b bits: 0 .. 2^b - 1, or signed -2^(b-1) .. 2^(b-1) - 1; balanced leaves out the lowest.

    Source: quantlib, ``algorithms/ana/ops.py``.

    >>> integers(2, signed=True, balanced=True).levels
    (-1.0, 0.0, 1.0)
    >>> integers(2, signed=False, balanced=False).levels
    (0.0, 1.0, 2.0, 3.0)
    """
    assert bits >= 1 and not (balanced and not signed), (bits, signed, balanced)
    low = -(2 ** (bits - 1)) if signed else 0
    levels = [float(q) for q in range(low, low + 2**bits)]
    return LevelSet(tuple(levels[1:] if balanced else levels))


def powers_of_two(bits: int) -> LevelSet:
    """INQ's levels {0, +-2^n2, ..., +-2^n1} in units of the top one, 2^n1: {0, +-1, +-1/2, ...}.

    One bit encodes zero and b - 1 bits encode the others: n1 - n2 + 1 = 2^(b-2) exponents, so 2^(b-1) + 1 levels.
    Source: INQ (Zhou et al., ICLR 2017), section 2.1. The scale (scales.py) sets the top exponent n1.

    >>> powers_of_two(3).levels
    (-1.0, -0.5, 0.0, 0.5, 1.0)
    >>> [len(powers_of_two(b).levels) for b in (2, 3, 4, 5)]
    [3, 5, 9, 17]
    """
    assert bits >= 2, bits
    positive = [2.0**-k for k in range(2 ** (bits - 2))]
    return LevelSet(tuple([-p for p in positive] + [0.0] + positive[::-1]))


def states(n: int) -> LevelSet:
    """The 2^n + 1 evenly spaced states of [-1, 1]: the discrete space Z_n of GXNOR-Net (arXiv 1705.09283).

    >>> states(1).levels, states(2).levels
    ((-1.0, 0.0, 1.0), (-1.0, -0.5, 0.0, 0.5, 1.0))
    """
    assert n >= 1, n
    return LevelSet(tuple(-1 + 2.0 ** (1 - n) * k for k in range(2**n + 1)))


def mid_rise(bits: int) -> LevelSet:
    """The 2^b levels k + 1/2 of b bits, half of them on either side of zero, which is no level.

    Source: the mid-rise quantizer of signal processing, Delta (floor(x / Delta) + 1/2), clamped to 2^b levels.

    >>> mid_rise(2).levels
    (-1.5, -0.5, 0.5, 1.5)
    """
    assert bits >= 1, bits
    half = 2 ** (bits - 1)
    return LevelSet(tuple(k + 0.5 for k in range(-half, half)))


def normal_quantiles(bits: int) -> LevelSet:
    """2^b quantiles of the standard normal distribution, at the midpoints (k + 1/2) / 2^b of equal probabilities.

    Zero is no level. At the scale with the smallest squared error they are close to the best levels for normal weights:
    0.118, 0.0354 and 0.0098 of the variance at 2, 3 and 4 bits, where Lloyd and Max have 0.1175, 0.0345 and 0.0095.

    Source: the "prior normal" levels of an edge-AI capstone (Columbia; mohitgulla/Edge, report 1, section 2.2.2). We
    differ: theirs are quantiles at equal distances from 0 to 1, with minimum and maximum for the infinite ones, and a
    wide gap to each.

    >>> [round(q, 3) for q in normal_quantiles(2).levels]
    [-1.15, -0.319, 0.319, 1.15]
    """
    assert bits >= 1, bits
    n = 2**bits
    positive = [NormalDist().inv_cdf((k + 0.5) / n) for k in range(n // 2, n)]
    return LevelSet(tuple([-q for q in reversed(positive)] + positive))


_NAME = re.compile(r"(int|uint|balanced|pow2_|states|midrise|normal)([1-9])")


def level_set(name: str, path: str = "levels") -> LevelSet:
    """The level set of a name, such as ``ternary``, ``int4``, ``pow2_5``, ``midrise3``; the error lists the names.

    Raises:
        MetaschedError: any other name; the message starts with ``path``, the field that holds the name.

    >>> level_set("uint1").levels
    (0.0, 1.0)
    """
    if name == "ternary":
        return ternary()
    if name == "binary":
        return binary()
    match = _NAME.fullmatch(name)
    kind, bits = (match[1], int(match[2])) if match else ("", 0)
    if kind == "uint" or (kind == "int" and bits >= 1):
        return integers(bits, signed=kind == "int", balanced=False)
    if kind == "balanced" and bits >= 2:
        return integers(bits, signed=True, balanced=True)
    if kind == "pow2_" and bits >= 2:
        return powers_of_two(bits)
    if kind == "states":
        return states(bits)
    if kind == "midrise":
        return mid_rise(bits)
    if kind == "normal":
        return normal_quantiles(bits)
    raise MetaschedError(
        path,
        f"unknown level set {name!r}",
        "use binary, ternary, intB, uintB, midriseB or normalB (B = 1 to 9 bits), balancedB or pow2_B (B = 2 to 9), or "
        "statesN (N = 1 to 9)",
    )


def name_with_bits(name: str, bits: int, path: str = "levels") -> str:
    """The name of the level set of so many bits in the family of another; 1 bit is ``binary`` in all families.

    Binary and ternary levels belong to ``balanced``.

    Raises:
        MetaschedError: the family has no numbers of bits, or not this one; the message starts with ``path``.

    >>> name_with_bits("ternary", 4), name_with_bits("pow2_3", 5), name_with_bits("int8", 1)
    ('balanced4', 'pow2_5', 'binary')
    """
    match = _NAME.fullmatch("balanced2" if name in ("binary", "ternary") else name)
    if match is None or match[1] == "states":
        problem = f"{name} are not levels of a number of bits"
        raise MetaschedError(path, problem, "use balancedB, intB, uintB or pow2_B")
    found = "binary" if bits == 1 else f"{match[1]}{bits}"
    level_set(found, path)
    return found
