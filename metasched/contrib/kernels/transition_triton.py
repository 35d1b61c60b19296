"""The Triton kernel of ``metasched::discrete_transition``; imported only on a GPU.

Each program updates a tile of [GROUPS, 4] weights: four neighbours share a Philox counter, belong to one thread, and
are loaded and stored as 16 bytes. Gradient, moments and states are read and written once, without intermediate results
in memory, so an update should take the time of moving ``bytes_per_weight`` bytes per weight.

The arithmetic is that of ``transition_in_torch``, operation by operation; ``enable_fp_fusion=False`` keeps the compiler
from fusing multiplications with additions.
"""

# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportOperatorIssue=false
# (kernels are in the language of Triton, which only looks like Python)

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from metasched.contrib.kernels.transition import LN2_HIGH, LN2_LOW, SHIFT, TINY

GROUPS = 256  # groups of four weights per program
_TINY, _SHIFT = tl.constexpr(TINY), tl.constexpr(SHIFT)
_LN2_HIGH, _LN2_LOW, _PER_LN2 = tl.constexpr(LN2_HIGH), tl.constexpr(LN2_LOW), tl.constexpr(1 / math.log(2))
_C2, _C3, _C4, _C5, _C6, _C7 = (tl.constexpr(1 / math.factorial(i)) for i in range(2, 8))


def launch(
    states: torch.Tensor,
    moments: Sequence[torch.Tensor],
    grad: torch.Tensor,
    scale: torch.Tensor,
    rate: torch.Tensor,
    numbers: Sequence[float],
    top: int,
    bits: int,
    seed: int,
    offset: int,
) -> None:
    """Runs the kernel on float32 gradients, moments and scales, and uint8 states; see ``transition_in_torch``."""
    n = grad.numel()
    assert n < 2**31, "elements are counted in 32 bits"
    first, second = (*moments, grad, grad)[:2]  # placeholders for missing moments are not accessed
    with torch.cuda.device_of(grad):
        transition_kernel[(triton.cdiv(n, 4 * GROUPS),)](
            states,
            first,
            second,
            grad,
            scale,
            rate,
            *numbers,
            top,
            n,
            n // scale.numel(),
            seed,
            offset,
            MOMENTS=len(moments),
            BITS=bits,
            ROWS=scale.numel() > 1,
            GROUPS=GROUPS,
            enable_fp_fusion=False,
        )


@triton.jit
def transition_kernel(
    states,
    first_moment,
    second_moment,
    grad,
    scale,
    rate,
    size: tl.float32,
    decay: tl.float32,
    shrink: tl.float32,
    keep1: tl.float32,
    gain1: tl.float32,
    keep2: tl.float32,
    gain2: tl.float32,
    eps: tl.float32,
    first: tl.float32,
    quantum: tl.float32,
    steepness: tl.float32,
    top: tl.int32,
    n: tl.int32,
    per_row: tl.int32,
    seed: tl.int64,
    offset: tl.int64,
    MOMENTS: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Updates GROUPS times four weights."""
    PER_BYTE: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = GROUPS * 4 // PER_BYTE
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    i = group[:, None] * 4 + tl.arange(0, 4)[None, :]
    here = i < n
    byte = tl.program_id(0) * BYTES + tl.arange(0, BYTES)
    held = byte < tl.cdiv(n, PER_BYTE)
    shift = tl.arange(0, PER_BYTE)[None, :] * BITS

    packed = tl.load(states + byte, mask=held, other=0).to(tl.int32)
    codes = (packed[:, None] >> shift) & ((1 << BITS) - 1)
    k = tl.reshape(codes, [GROUPS, 4]).to(tl.float32)
    if ROWS:
        own_scale = tl.load(scale + i // per_row, mask=here, other=1.0)
        own_rate = tl.load(rate + i // per_row, mask=here, other=0.0)
    else:
        own_scale, own_rate = tl.load(scale), tl.load(rate)
    w = (k * quantum + first) * own_scale

    m = tl.load(grad + i, mask=here, other=0.0) + w * decay
    g = m
    if MOMENTS > 0:
        m = tl.load(first_moment + i, mask=here, other=0.0) * keep1 + g * gain1
        tl.store(first_moment + i, m, mask=here)
    if MOMENTS == 2:
        v = tl.load(second_moment + i, mask=here, other=0.0) * keep2 + g * g * gain2
        tl.store(second_moment + i, v, mask=here)
        m = tl.div_rn(m, tl.sqrt_rn(tl.maximum(v, _TINY)) + eps)

    x = (m * size + w * shrink) * own_rate
    length = tl.abs(x)
    whole = tl.floor(length)
    rise = _rise((length - whole) * steepness)
    more = _uniform(seed, offset, group) * (2.0 - rise) < rise
    jump = tl.minimum(whole, top.to(tl.float32)) + more.to(tl.float32)
    jump = tl.where(length >= 0, jump, 0.0)
    k = tl.minimum(tl.maximum(k + tl.where(x < 0, -jump, jump), 0.0), top.to(tl.float32))

    codes = tl.reshape(tl.where(here, k, 0.0).to(tl.int32), [BYTES, PER_BYTE])
    tl.store(states + byte, tl.sum(codes << shift, axis=1).to(tl.uint8), mask=held)


@triton.jit
def _uniform(seed, offset, group):
    """The uniform numbers of the four elements of each group: float32 [GROUPS, 4]."""
    block = group.to(tl.uint32)
    offset = offset.to(tl.uint64)  # the interpreter chooses its type by the value
    low, high = offset.to(tl.uint32), (offset >> 32).to(tl.uint32)
    r0, r1, r2, r3 = tl.philox(seed, block, block * 0, block * 0 + low, block * 0 + high)
    lane = tl.arange(0, 4)[None, :]
    low_two = tl.where(lane == 0, r0[:, None], r1[:, None])
    high_two = tl.where(lane == 2, r2[:, None], r3[:, None])
    return (tl.where(lane < 2, low_two, high_two) >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _rise(x):
    """See ``transition.rise``."""
    z = tl.maximum(x * -2.0, -40.0)
    shifted = z * _PER_LN2 + _SHIFT
    j = shifted - _SHIFT
    r = (z - j * _LN2_HIGH) - j * _LN2_LOW
    s = (((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2) * r + 1.0
    s = s * r
    power = ((shifted.to(tl.int32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)
    return (1.0 - power) - power * s
