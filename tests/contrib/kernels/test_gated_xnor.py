"""The gated XNOR product is the product; what it gates off is what has a zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from metasched.contrib.kernels.gated_xnor import (
    bit_planes,
    gated_off,
    gated_product,
    popcount,
    product_in_torch,
    ternary_conv2d,
    ternary_linear,
)

SIZES = st.sampled_from([1, 2, 31, 32, 33, 64, 65, 100])


def trits(*shape: int, draws: torch.Generator, zeros: float = 0.4) -> torch.Tensor:
    signs = 1 - 2 * torch.randint(2, shape, generator=draws)
    return (signs * (torch.rand(shape, generator=draws) >= zeros)).double()


@given(st.integers(0, 7), st.integers(0, 7), SIZES, st.sampled_from([0.0, 0.4, 1.0]), st.integers(0, 2**31))
def test_it_is_the_product_of_floats(m: int, n: int, k: int, zeros: float, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    a, b = trits(m, k, draws=draws, zeros=zeros), trits(n, k, draws=draws)
    a[: m // 3] = 0
    product = gated_product(bit_planes(a), bit_planes(b))
    assert torch.equal(product.values.double(), a @ b.T)
    operations = (a[:, None] * b[None]) != 0
    assert int(product.active) == int(operations.sum())
    assert gated_off(product, k) == int((~operations).sum())


def test_without_zeros_it_is_the_xnor_product() -> None:
    draws = torch.Generator().manual_seed(1)
    a, b = (trits(rows, 100, draws=draws, zeros=0.0) for rows in (9, 5))
    product = gated_product(bit_planes(a), bit_planes(b))
    differ = sum(popcount(x[:, None] ^ y) for x, y in zip(bit_planes(a).sign, bit_planes(b).sign, strict=True))
    assert torch.equal(product.values, 100 - 2 * differ)
    assert gated_off(product, 100) == 0


def test_layout_of_the_planes() -> None:
    matrix = torch.zeros(2, 34, dtype=torch.int8)
    matrix[0, 31], matrix[1, 33] = -1, 1
    planes = bit_planes(matrix)
    assert planes.columns == 34 and planes.nonzero.is_contiguous()
    assert planes.nonzero.tolist() == [[-(2**31), 0], [0, 2]]
    assert planes.sign.tolist() == [[-(2**31), 0], [0, 0]]
    assert planes.nonzero.element_size() * planes.nonzero.numel() * 8 == 2 * 64  # one bit a trit and plane, padded


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1))
def test_popcount(words: list[int]) -> None:
    found = popcount(torch.tensor(words, dtype=torch.int32))
    assert found.tolist() == [(word % 2**32).bit_count() for word in words]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_layer(dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(2)
    x, w = trits(2, 3, 40, draws=draws).to(dtype), trits(7, 40, draws=draws).to(dtype)
    scale, bias = 2.0 ** torch.arange(-3, 4).to(dtype), torch.randn(7, generator=draws).to(dtype).round(decimals=3)
    found = ternary_linear(x, bit_planes(w), scale * 0.5, bias)
    exact = F.linear(x, w) * (scale * 0.5) + bias
    assert found.dtype == dtype and torch.equal(found, exact)
    assert torch.equal(ternary_linear(x, bit_planes(w)), F.linear(x, w))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (1, 1, 0), (5, 2, 2)])
def test_a_convolution(kernel: int, stride: int, padding: int) -> None:
    draws = torch.Generator().manual_seed(3)
    x, w = trits(2, 5, 9, 8, draws=draws), trits(4, 5, kernel, kernel, draws=draws)
    found = ternary_conv2d(x, bit_planes(w.flatten(1)), kernel, stride, padding)
    assert torch.equal(found, F.conv2d(x, w, stride=stride, padding=padding))


def test_rows_of_other_lengths_are_refused() -> None:
    with pytest.raises(AssertionError):
        gated_product(bit_planes(torch.ones(1, 3)), bit_planes(torch.ones(1, 4)))


@pytest.mark.slow
def test_torchs_own_checks_of_operators() -> None:
    planes = bit_planes(torch.tensor([[1, 0, -1], [0, 0, 1]]))
    arguments = (planes.nonzero, planes.sign, planes.nonzero, planes.sign)
    assert all(map(torch.equal, torch.ops.metasched.gated_xnor(*arguments), product_in_torch(*arguments)))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.metasched.gated_xnor.default, arguments, test_utils=checks)
