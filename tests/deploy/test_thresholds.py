from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasched.deploy.thresholds import SLACK, Channel, Norm, ceil_with_root, fold

rationals = st.fractions(-1000, 1000, max_denominator=10**6)
floats = st.floats(-50, 50, width=32).map(Fraction)


@given(rationals, rationals, st.fractions(0, 1000, max_denominator=10**6))
def test_the_ceiling_is_the_smallest_integer_at_or_above(p: Fraction, c: Fraction, v: Fraction) -> None:
    n = ceil_with_root(p, c, v)

    def at_least(n: int) -> bool:  # n - p >= c sqrt(v), by squares
        left, square = n - p, c * c * v
        return left >= 0 and left * left >= square if c > 0 else left >= 0 or left * left <= square

    assert at_least(n) and not at_least(n - 1)


@pytest.mark.parametrize(
    "p, c, v, expected", [(0, 1, 9, 3), (0, -1, 9, -3), (2, 1, 0, 2), (0, 1, 2, 2), (0, -1, 2, -1)]
)
def test_roots_that_are_integers_and_that_are_not(p: int, c: int, v: int, expected: int) -> None:
    assert ceil_with_root(Fraction(p), Fraction(c), Fraction(v)) == expected


@given(floats, floats, floats, floats, st.floats(0, 50, width=32), st.floats(0.0078125, 2, width=32))
def test_levels_are_those_of_the_normalized_sum(
    gamma: Fraction, beta: Fraction, mean: Fraction, bias: Fraction, variance: float, step: float
) -> None:
    """In 60 decimal digits, for each sum that can be: the reference that folding must not differ from."""
    reach, thetas = 40, [Fraction(-1, 2), Fraction(1, 2), Fraction(3, 2)]
    channel = Channel(Fraction(step), bias, Norm(gamma, beta, mean, Fraction(variance) + Fraction(1e-5)))
    flipped = gamma < 0
    values = fold([channel.flipped() if flipped else channel], thetas, reach)[0]
    assert (np.diff(values) >= 0).all() and values.min() >= -reach and values.max() <= reach + 1

    def decimal(x: Fraction) -> Decimal:
        return Decimal(x.numerator) / Decimal(x.denominator)

    with localcontext() as context:
        context.prec = 60
        sigma = decimal(Fraction(variance) + Fraction(1e-5)).sqrt()
        for y in range(-reach, reach + 1):
            real = decimal(gamma) * (decimal(Fraction(step)) * y + decimal(bias) - decimal(mean)) / sigma + decimal(
                beta
            )
            level = sum(real >= decimal(theta - SLACK) for theta in thetas)
            assert level == int(((-y if flipped else y) >= values).sum())


def test_a_gamma_of_zero_is_a_constant() -> None:
    def channel(beta: float) -> Channel:
        return Channel(Fraction(1), Fraction(0), Norm(Fraction(0), Fraction(beta), Fraction(9), Fraction(2)))

    thetas = [Fraction(-1, 2), Fraction(1, 2)]
    values = fold([channel(-1), channel(0), channel(0.5)], thetas, reach=7)
    assert values.tolist() == [[8, 8], [-7, 8], [-7, -7]]  # never; only the lower one; both, for a threshold is passed


def test_a_sum_that_rounding_puts_below_a_threshold_passes_it() -> None:
    sixth = Fraction(1 / 6)
    assert 3 * sixth < Fraction(1, 2)
    assert fold([Channel(sixth, Fraction(0), None)], [Fraction(1, 2)], reach=9).tolist() == [[3]]


def test_without_normalization_the_bias_moves_the_threshold() -> None:
    channel = Channel(Fraction(1, 2), Fraction(1), None)  # y / 2 + 1 >= 1/2 from y = -1 on
    assert fold([channel], [Fraction(1, 2)], reach=9).tolist() == [[-1]]
