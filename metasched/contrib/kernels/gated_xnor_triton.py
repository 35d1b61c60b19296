"""The Triton kernel of ``metasched::gated_xnor``; imported only on a GPU.

Each program computes one tile of the product, in a loop over the words of its rows. It writes its count of active
multiplications to a separate element, so that the sum does not depend on the order of programs. The bit sums are
written so that the compiler recognizes them as one population-count instruction; a test looks for it in the machine
code.
"""

# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportOperatorIssue=false
# (kernels are in the language of Triton, which only looks like Python)

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS = 64  # of A and of B per program


def launch(
    a_nonzero: torch.Tensor, a_sign: torch.Tensor, b_nonzero: torch.Tensor, b_sign: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the kernel on int32 planes [words, M] and [words, N]; see ``product_in_torch``."""
    (words, m), n = a_nonzero.shape, b_nonzero.shape[1]
    assert words * 32 * ROWS**2 < 2**31, "the count of a program must fit into 32 bits"
    grid = (triton.cdiv(m, ROWS), triton.cdiv(n, ROWS))
    values = a_nonzero.new_empty(m, n)
    active = a_nonzero.new_empty(grid, dtype=torch.int64)
    with torch.cuda.device_of(a_nonzero):
        planes = (a_nonzero, a_sign, b_nonzero, b_sign)
        product_kernel[grid](*planes, values, active, m, n, words, ROWS=ROWS, enable_fp_fusion=False)
    return values, active.sum()


@triton.jit
def product_kernel(
    a_nonzero,
    a_sign,
    b_nonzero,
    b_sign,
    values,
    active,
    m: tl.int32,
    n: tl.int32,
    words: tl.int32,
    ROWS: tl.constexpr,
):
    """Computes a tile of ROWS x ROWS of the product, and the number of its active multiplications."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    in_a, in_b = row < m, column < n
    opened = tl.zeros([ROWS, ROWS], tl.int32)
    differed = tl.zeros([ROWS, ROWS], tl.int32)
    for word in range(words):
        open_a = tl.load(a_nonzero + word * m + row, mask=in_a, other=0)
        open_b = tl.load(b_nonzero + word * n + column, mask=in_b, other=0)
        sign_a = tl.load(a_sign + word * m + row, mask=in_a, other=0)
        sign_b = tl.load(b_sign + word * n + column, mask=in_b, other=0)
        gate = open_a[:, None] & open_b[None, :]
        opened += _popcount(gate)
        differed += _popcount(gate & (sign_a[:, None] ^ sign_b[None, :]))
    place = row.to(tl.int64)[:, None] * n + column[None, :]
    tl.store(values + place, opened - 2 * differed, mask=in_a[:, None] & in_b[None, :])
    tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(active + tile, tl.sum(tl.sum(opened, axis=1), axis=0).to(tl.int64))


@triton.jit
def _popcount(x):
    x = x.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)
