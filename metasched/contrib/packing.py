"""Packed states: a weight on a level set takes 1, 2, 4 or 8 bits instead of 32; a ternary weight takes 2.

The state k of the first weight is in the lowest bits of the first byte; the last byte is padded with zeros.
"""

from __future__ import annotations

import math

import torch

from metasched.quantizers.levels import LevelSet


def bits_of(levels: LevelSet) -> int:
    """Bits of a packed state: the smallest power of two that is sufficient for the levels.

    >>> from metasched.quantizers.levels import level_set
    >>> [bits_of(level_set(name)) for name in ("binary", "ternary", "states2", "int5")]
    [1, 2, 4, 8]
    """
    bits = next(b for b in (1, 2, 4, 8, 16) if 2**b >= len(levels.levels))
    assert bits <= 8, "more than 256 levels do not fit into a byte"
    return bits


def pack(w: torch.Tensor, scale: torch.Tensor, levels: LevelSet) -> torch.Tensor:
    """Packs weights whose values are exactly ``scale * level``; inverse of ``unpack``.

    Args:
        w: [...] with N elements, any floating dtype.
        scale: broadcastable to w.
        levels: at most 256.

    Returns:
        uint8 [ceil(N bits / 8)].
    """
    bits = bits_of(levels)
    thresholds = torch.tensor(levels.thresholds, dtype=w.dtype, device=w.device)
    k = torch.bucketize((w / scale).flatten(), thresholds, right=True).to(torch.uint8)
    per_byte = 8 // bits
    rows = torch.nn.functional.pad(k, (0, -len(k) % per_byte)).reshape(-1, per_byte)
    return (rows << _shifts(bits, rows)).sum(1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, like: torch.Size, scale: torch.Tensor, levels: LevelSet) -> torch.Tensor:
    """Restores packed weights, bit for bit.

    Args:
        packed: uint8 [ceil(N bits / 8)], from ``pack``.
        like: shape of the weights, with N elements.
        scale: broadcastable to the weights.
        levels: as in ``pack``.

    Returns:
        [...] with the shape ``like`` and the dtype of ``scale``.
    """
    bits = bits_of(levels)
    k = (packed[:, None] >> _shifts(bits, packed)) & (2**bits - 1)
    values = torch.tensor(levels.levels, dtype=scale.dtype, device=scale.device)
    return values[k.flatten()[: math.prod(like)].int()].reshape(like) * scale


def _shifts(bits: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=like.device)
