"""Philox 4x32-10: random numbers as a function of (seed, offset, index), equal on all devices.

A counter of four 32-bit words is transformed in ten rounds with a key of two words,

    (c0, c1, c2, c3) <- (hi(B c2) ^ c1 ^ k0, lo(B c2), hi(A c0) ^ c3 ^ k1, lo(A c0))
    (k0, k1) <- (k0 + 0x9E3779B9, k1 + 0xBB67AE85)

where A = 0xD2511F53, B = 0xCD9E8D57, and hi and lo are the halves of a 64-bit product. One counter gives four numbers:
elements 4j to 4j + 3 are the words for the counter (j, 0, offset) and the key seed.

Source: Salmon, Moraes, Dror, Shaw: *Parallel Random Numbers: As Easy as 1, 2, 3*, SC 2011; Random123, whose published
vectors are in the tests. torch's own generators have no access by element and differ between CPU and GPU.
"""

from __future__ import annotations

import torch

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

_WORD = 0xFFFFFFFF
_A, _B = 0xD2511F53, 0xCD9E8D57
_STEP_0, _STEP_1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four random words for each counter.

    Args:
        counter: four int64 tensors [...] of one shape, values in [0, 2^32).
        key: two words in [0, 2^32).

    Returns:
        four int64 tensors [...], values in [0, 2^32).

    >>> zero = torch.zeros((), dtype=torch.int64)
    >>> [hex(word) for word in philox((zero, zero, zero, zero), (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(_ROUNDS):
        # products wrap modulo 2^64; the mask removes the sign bits that the arithmetic shift inserts
        a, b = c0 * _A, c2 * _B
        c0, c1 = (b >> 32 & _WORD) ^ c1 ^ k0, b & _WORD
        c2, c3 = (a >> 32 & _WORD) ^ c3 ^ k1, a & _WORD
        k0, k1 = k0 + _STEP_0 & _WORD, k1 + _STEP_1 & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, offset: int, n: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Uniform numbers for elements 0 to n - 1: [n], float32, multiples of 2^-24 in [0, 1).

    Args:
        seed: seed of a stream, in [0, 2^63).
        offset: position in the stream, such as a training step, in [0, 2^63).
        n: number of elements.
        device: device of the result.

    >>> bool((uniform(7, 3, 5) == uniform(7, 3, 9)[:5]).all())
    True
    """
    assert 0 <= seed < 2**63 and 0 <= offset < 2**63, (seed, offset)
    block = torch.arange(-(-n // 4), device=device)
    zero = torch.zeros_like(block)
    words = philox((block, zero, zero + (offset & _WORD), zero + (offset >> 32)), (seed & _WORD, seed >> 32))
    return (torch.stack(words, 1).flatten()[:n] >> 8).to(torch.float32) * 2.0**-24
