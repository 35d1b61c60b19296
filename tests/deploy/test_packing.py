from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasched.deploy.packing import (
    account,
    compression,
    pack_bits,
    pack_trits,
    packed,
    storage_bits,
    unpack_bits,
    unpack_trits,
)
from metasched.deploy.stages import Convolution, IntegerNetwork, Linear

trits = st.lists(st.integers(-1, 1), max_size=50)


def network(*layers: Convolution | Linear) -> IntegerNetwork:
    return IntegerNetwork((1, 8, 8), Fraction(1), layers)


def linear(weight: np.ndarray, on_levels: bool = True) -> Linear:
    return Linear("linear", weight, (), 10, on_levels)


@given(trits)
def test_trits_come_back(values: list[int]) -> None:
    data = pack_trits(values)
    assert unpack_trits(data, len(values)).tolist() == values
    assert len(data) == math.ceil(len(values) / 5) and max(data, default=0) < 243


def of_bits(bits: int) -> st.SearchStrategy[tuple[int, list[int]]]:
    half = 2 ** (bits - 1)
    return st.tuples(st.just(bits), st.lists(st.integers(-half, half - 1), max_size=50))


@given(st.sampled_from([2, 4, 8]).flatmap(of_bits))
def test_bits_come_back(case: tuple[int, list[int]]) -> None:
    bits, values = case
    data = pack_bits(values, bits)
    assert unpack_bits(data, bits, len(values)).tolist() == values
    assert len(data) == math.ceil(len(values) * bits / 8)


def test_the_bits_of_a_byte() -> None:
    assert pack_bits([1, 0, -1, -2], 2) == bytes([0b10_11_00_01])
    assert pack_bits([7, -8], 4) == bytes([0b1000_0111])
    assert pack_trits([1, 1, 1, 1, 1]) == bytes([242]) and pack_trits([-1, 0]) == bytes([0 + 3 + 9 + 27 + 81])


@pytest.mark.parametrize("low, high, bits", [(-1, 1, 2), (-2, 1, 2), (-1, 2, 4), (-8, 7, 4), (-9, 0, 8), (0, 127, 8)])
def test_storage_takes_the_fewest_bits(low: int, high: int, bits: int) -> None:
    assert storage_bits(np.array([low, high])) == bits


def test_the_account_is_exact() -> None:
    weight = np.array([[1, 0, 0, 0], [-1, 0, 0, 1], [0, 0, 0, -1]])
    (size,) = account(network(linear(weight)))
    assert (size.weights, size.bits, size.packed, size.trits, size.float32) == (12, 2, 3, 3, 48)
    assert size.sparsity == 8 / 12
    assert size.entropy == pytest.approx(-(2 / 3 * math.log2(2 / 3) + 2 * (1 / 6) * math.log2(1 / 6)), rel=1e-12)
    assert size.packed == len(packed(linear(weight)))


def test_a_layer_in_fixed_point_takes_32_bits_and_no_part_in_the_compression() -> None:
    sizes = account(network(linear(np.ones((16, 64), np.int64)), linear(np.full((2, 2), 2**24), on_levels=False)))
    assert [s.bits for s in sizes] == [2, 32] and sizes[1].packed == 16 and sizes[1].trits is None
    assert compression(sizes) == 16.0


def test_two_bits_are_a_sixteenth_but_for_the_last_byte() -> None:
    rng = np.random.default_rng(0)
    sizes = account(network(*(linear(rng.integers(-1, 2, (n, 27))) for n in (24, 48, 96))))
    assert 15.9 <= compression(sizes) <= 16


@pytest.mark.parametrize("pack", [lambda: pack_trits([2]), lambda: pack_bits([2], 2), lambda: pack_bits([-9], 4)])
def test_what_does_not_fit_is_not_packed(pack: object) -> None:
    with pytest.raises(AssertionError):
        pack()  # type: ignore[operator]
