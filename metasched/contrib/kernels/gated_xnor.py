"""Products of ternary matrices from bit planes, without multiplications: and, exclusive or, population count.

A trit has two bits: nonzero and negative. For rows a of A and b of B, in words of 32 bits,

    gate = nonzero_a & nonzero_b,    a . b = sum over words of popcount(gate) - 2 popcount(gate & (sign_a ^ sign_b))

so only elements with two nonzero operands count; in the hardware of GXNOR-Net all other units are off. Without zeros
this is the product of XNOR networks, K - 2 popcount(sign_a ^ sign_b). Integer sums do not depend on the order, so torch
and the GPU kernel (gated_xnor_triton.py) have equal results. The torch operator is ``metasched::gated_xnor``.

Source: Deng et al., GXNOR-Net, 2018, arXiv 1705.09283, the part on event-driven hardware; Rastegari et al., XNOR-Net,
ECCV 2016, arXiv 1603.05279. Word-parallel counting is ours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

WORD = 32


class BitPlanes(NamedTuple):
    """A ternary matrix with two bits per element.

    Attributes:
        nonzero, sign: int32 [words, rows]; column c of the matrix is bit c % 32 of word c // 32. Neighbouring rows are
            neighbours in memory, for the kernel. Bits of ``sign`` are 1 for negative elements.
        columns: K, the number of columns.
    """

    nonzero: torch.Tensor
    sign: torch.Tensor
    columns: int


class Product(NamedTuple):
    """A product of ternary matrices.

    Attributes:
        values: A B^T, int32 [M, N].
        active: number of the M N K multiplications with two nonzero operands; int64, 0-d.
    """

    values: torch.Tensor
    active: torch.Tensor


def bit_planes(matrix: torch.Tensor) -> BitPlanes:
    """Packs a matrix [rows, K] of -1, 0 and 1, of any dtype.

    >>> planes = bit_planes(torch.tensor([[1, 0, -1, 1]]))
    >>> planes.nonzero.tolist(), planes.sign.tolist()
    ([[13]], [[4]])
    """
    return BitPlanes(_words(matrix != 0), _words(matrix < 0), matrix.shape[1])


def gated_product(a: BitPlanes, b: BitPlanes) -> Product:
    """The product A B^T of A [M, K] and B [N, K], as in a linear layer with weight B.

    >>> one = bit_planes(torch.tensor([[1, 0, -1, 1]]))
    >>> product = gated_product(one, one)
    >>> product.values.tolist(), gated_off(product, 4)
    ([[3]], 1)
    """
    assert a.columns == b.columns, (a.columns, b.columns)
    return Product(*torch.ops.metasched.gated_xnor(a.nonzero, a.sign, b.nonzero, b.sign))


def gated_off(product: Product, columns: int) -> int:
    """Number of the M N K multiplications with a zero operand, which the gate switches off."""
    return product.values.numel() * columns - int(product.active)


def ternary_linear(
    x: torch.Tensor, weight: BitPlanes, scale: float | torch.Tensor = 1.0, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """A linear layer of a hardened ternary network: scale (x W^T) + bias.

    Args:
        x: [..., K] of -1, 0 and 1, any floating dtype.
        weight: bit planes of W / scale_w, [N, K].
        scale: activation quantum times scale_w; a number, or [N] for one per output.
        bias: [N].

    Returns:
        [..., N] in the dtype of x; equal to torch.nn.functional.linear, and bit for bit if scale is a power of two.
    """
    values = gated_product(bit_planes(x.reshape(-1, weight.columns)), weight).values
    y = values.to(x.dtype).reshape(*x.shape[:-1], -1) * scale
    return y if bias is None else y + bias


def ternary_conv2d(
    x: torch.Tensor, weight: BitPlanes, kernel_size: int, stride: int = 1, padding: int = 0
) -> torch.Tensor:
    """A convolution with a square kernel in units of the scales, through ``unfold``.

    Args:
        x: [B, C, H, W] of -1, 0 and 1, any floating dtype. The zeros of the padding are gated off like others.
        weight: bit planes of W [N, C, kernel_size, kernel_size], one row for each output channel.
        kernel_size, stride, padding: as in torch.nn.functional.conv2d.

    Returns:
        [B, N, H', W'] in the dtype of x.
    """
    height, width = ((side + 2 * padding - kernel_size) // stride + 1 for side in x.shape[2:])
    patches = F.unfold(x, kernel_size, padding=padding, stride=stride).transpose(1, 2)
    return ternary_linear(patches, weight).transpose(1, 2).reshape(len(x), -1, height, width)


def product_in_torch(
    a_nonzero: torch.Tensor, a_sign: torch.Tensor, b_nonzero: torch.Tensor, b_sign: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator in torch operations, one word at a time.

    Args:
        a_nonzero, a_sign: bit planes of A, int32 [words, M].
        b_nonzero, b_sign: bit planes of B, int32 [words, N].

    Returns:
        values, int32 [M, N], and active, int64 0-d; see ``Product``.
    """
    (words, m), n = a_nonzero.shape, b_nonzero.shape[1]
    values = torch.zeros(m, n, dtype=torch.int32, device=a_nonzero.device)
    active = torch.zeros((), dtype=torch.int64, device=a_nonzero.device)
    for i in range(words):
        gate = a_nonzero[i, :, None] & b_nonzero[i]
        count = popcount(gate)
        values += count - 2 * popcount(gate & (a_sign[i, :, None] ^ b_sign[i]))
        active += count.sum()
    return values, active


def popcount(x: torch.Tensor) -> torch.Tensor:
    """Number of 1 bits of each int32 element [...]; int32.

    >>> popcount(torch.tensor([0, 7, -1], dtype=torch.int32))
    tensor([ 0,  3, 32], dtype=torch.int32)
    """
    # sums of neighbouring 1, 2 and 4 bits; the masks remove the sign bits that arithmetic shifts insert
    x = x - (x >> 1 & 0x55555555)
    x = (x & 0x33333333) + (x >> 2 & 0x33333333)
    x = x + (x >> 4) & 0x0F0F0F0F
    return x * 0x01010101 >> 24  # the top byte of the product is the sum of all four


def _words(bits: torch.Tensor) -> torch.Tensor:
    """Packs bool [rows, K] into int32 [words, rows]."""
    padded = F.pad(bits, (0, -bits.shape[1] % WORD)).unflatten(1, (-1, WORD)).to(torch.int32)
    shifted = padded << torch.arange(WORD, dtype=torch.int32, device=bits.device)
    return shifted.sum(2, dtype=torch.int32).T.contiguous()


def _on_gpu(
    a_nonzero: torch.Tensor, a_sign: torch.Tensor, b_nonzero: torch.Tensor, b_sign: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    from metasched.contrib.kernels.gated_xnor_triton import launch

    return launch(a_nonzero, a_sign, b_nonzero, b_sign)


def _shapes(
    a_nonzero: torch.Tensor, a_sign: torch.Tensor, b_nonzero: torch.Tensor, b_sign: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    values = a_nonzero.new_empty(a_nonzero.shape[1], b_nonzero.shape[1])
    return values, a_nonzero.new_empty((), dtype=torch.int64)


# not custom_op: its first call imports the compiler, which takes seconds
_LIBRARY = torch.library.Library("metasched", "FRAGMENT")
_LIBRARY.define("gated_xnor(Tensor a_nonzero, Tensor a_sign, Tensor b_nonzero, Tensor b_sign) -> (Tensor, Tensor)")
_LIBRARY.impl("gated_xnor", product_in_torch, "CompositeExplicitAutograd")
_LIBRARY.impl("gated_xnor", _on_gpu, "CUDA")
torch.library.register_fake("metasched::gated_xnor", _shapes, lib=_LIBRARY)
