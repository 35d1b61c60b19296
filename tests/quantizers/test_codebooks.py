"""Packed codes: their size to the byte, and back."""

from __future__ import annotations

import pytest
import torch

from metasched.quantizers.codebooks import code_width, packed, stored_bytes, unpacked


@pytest.mark.parametrize("codes", [2, 8, 32, 256, 4096])
@pytest.mark.parametrize("number", [1, 7, 100])
def test_codes_are_as_long_as_the_formula_says_and_come_back(codes: int, number: int) -> None:
    indices = torch.randint(codes, (number,))
    data = packed(indices, codes)
    assert len(data) == stored_bytes(number, codes, values=0) == -(-number * code_width(codes) // 8)
    assert torch.equal(unpacked(data, number, codes), indices)


def test_values_have_the_bits_that_one_says() -> None:
    assert stored_bytes(0, 16, values=10) == 40
    assert stored_bytes(0, 16, values=10, value_bits=16) == 20
    assert stored_bytes(3, 16, values=1, value_bits=4) == 2 + 1


@pytest.mark.parametrize("codes", [0, 1, 3, 24])
def test_a_number_that_is_no_power_of_two_has_no_width(codes: int) -> None:
    with pytest.raises(AssertionError, match="no power of two"):
        code_width(codes)
