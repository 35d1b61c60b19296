"""Codes into a codebook, as they are stored: log2(K) bits each, one after the other, and K values beside them.

    bits = N log2(K) + V b        N codes of K = 2^k, V numbers of b bits in the codebooks

Codes are packed without gaps, the most significant bit first; the last byte ends with zeros.
"""

from __future__ import annotations

import numpy as np
import torch


def code_width(codes: int) -> int:
    """log2(K): bits of a code.

    >>> code_width(256)
    8
    """
    assert codes >= 2 and codes & (codes - 1) == 0, f"{codes} is no power of two"
    return codes.bit_length() - 1


def stored_bytes(number: int, codes: int, values: int, value_bits: int = 32) -> int:
    """Bytes of N codes of K, and of V numbers in their codebooks.

    Args:
        number: N.
        codes: K, a power of two.
        values: V.
        value_bits: bits of each of these.

    >>> stored_bytes(number=10, codes=8, values=4, value_bits=16)  # 30 bits, and 64
    12
    """
    return -(-number * code_width(codes) // 8) + -(-values * value_bits // 8)


def packed(indices: torch.Tensor, codes: int) -> bytes:
    """Codes [...], int64 in [0, K), as bytes.

    >>> packed(torch.tensor([1, 2, 3, 0]), 4).hex()
    '6c'
    """
    shifts = np.arange(code_width(codes))[::-1]
    bits = (indices.detach().cpu().numpy().reshape(-1, 1) >> shifts) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def unpacked(data: bytes, number: int, codes: int) -> torch.Tensor:
    """N codes from ``packed``, int64 [N]."""
    width = code_width(codes)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=number * width).reshape(number, width)
    return torch.from_numpy(bits.astype(np.int64) @ (1 << np.arange(width)[::-1]))
