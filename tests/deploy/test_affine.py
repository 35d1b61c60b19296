"""The arithmetic of scales and zero points: multipliers in fixed point, rounding, poolings, clips."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasched.deploy.affine import Clip, Multiplier, apply
from metasched.deploy.stages import SumPool


@given(st.floats(2.0**-32, 1e6) | st.floats(-1e6, -(2.0**-32)), st.integers(-(2**31) + 1, 2**31 - 1))
def test_a_product_is_that_of_fractions_rounded_once(m: float, a: int) -> None:
    found = Multiplier.of([m])
    m0, shift = int(found.m0[0]), int(found.shift[0])
    assert 2**30 <= abs(m0) < 2**31 and abs(Fraction(m0, 2**shift) / Fraction(m) - 1) <= Fraction(1, 2**31)
    exact = Fraction(m0 * a, 2**shift)
    product = int(found(np.array([[a]]))[0, 0])
    assert product == (exact + Fraction(1, 2)).__floor__() and abs(product - exact) <= Fraction(1, 2)


@pytest.mark.parametrize("m", [0.0, 1e-300, 2.0**-33])
def test_factors_without_effect_are_zero(m: float) -> None:
    found = Multiplier.of([m, 0.5])
    assert found(np.array([[2**31 - 1, 7]])).tolist() == [[0, 4]]


def test_an_average_is_rounded_half_up_and_a_clip_keeps_codes() -> None:
    pool = SumPool("pool", np.array([[1, 1]]), np.array([[1, 1]]), 4 * 255)
    codes = np.array([[[[1, 2], [3, 4]]], [[[0, 0], [0, 1]]], [[[255, 255], [255, 254]]]])
    assert apply(pool, codes).flatten().tolist() == [3, 0, 255]
    assert apply(Clip(10, 20), np.array([[5, 15, 25]])).tolist() == [[10, 15, 20]]
