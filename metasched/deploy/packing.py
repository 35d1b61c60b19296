"""Packed weights, and their exact size.

There are two codes for ternary weights. The first is two's complement in 2 bits, four weights per byte, the first in
the lowest bits (-1 is 11, as in ONNX's INT2 and in CUTIE). The second is base 3, five weights per byte, the first as
the lowest digit, with -1, 0, 1 as digits 0, 1, 2. Weights with more levels use 4 or 8 bits in two's complement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metasched.deploy.stages import Array, Convolution, IntegerNetwork, Linear

_TRITS = 5  # 3^5 = 243 <= 256
_POWERS = 3 ** np.arange(_TRITS)
_FLOAT_BYTES = 4


def pack_bits(values: npt.ArrayLike, bits: int) -> bytes:
    """Packs integers in two's complement of 2, 4 or 8 bits, the first in the lowest bits; pads with zeros.

    >>> pack_bits([1, 0, -1, 1, -1], 2).hex()
    '7103'
    """
    flat = np.asarray(values, np.int64).reshape(-1)
    assert bits in (2, 4, 8) and (flat.size == 0 or -(2 ** (bits - 1)) <= flat.min() <= flat.max() < 2 ** (bits - 1))
    per_byte = 8 // bits
    codes = np.pad(flat & (2**bits - 1), (0, -flat.size % per_byte)).reshape(-1, per_byte)
    return (codes << (bits * np.arange(per_byte))).sum(1).astype(np.uint8).tobytes()


def unpack_bits(data: bytes, bits: int, count: int) -> Array:
    """Inverse of ``pack_bits``: ``count`` integers, int64 [count]."""
    codes = np.frombuffer(data, np.uint8).astype(np.int64)[:, None] >> (bits * np.arange(8 // bits))
    half = 2 ** (bits - 1)
    return ((codes.reshape(-1)[:count] & (2**bits - 1)) ^ half) - half


def pack_trits(values: npt.ArrayLike) -> bytes:
    """Packs numbers -1, 0 and 1, five per byte; pads with zeros.

    >>> pack_trits([1, 0, -1]).hex(), unpack_trits(pack_trits([1, 0, -1]), 3).tolist()
    ('71', [1, 0, -1])
    """
    flat = np.asarray(values, np.int64).reshape(-1)
    assert np.abs(flat).max(initial=0) <= 1
    digits = np.pad(flat, (0, -flat.size % _TRITS)).reshape(-1, _TRITS) + 1
    return (digits @ _POWERS).astype(np.uint8).tobytes()


def unpack_trits(data: bytes, count: int) -> Array:
    """Inverse of ``pack_trits``: ``count`` numbers, int64 [count]."""
    digits = np.frombuffer(data, np.uint8).astype(np.int64)[:, None] // _POWERS % 3
    return digits.reshape(-1)[:count] - 1


def storage_bits(weight: Array) -> int:
    """The smallest of 2, 4 and 8 bits in which all integers fit in two's complement."""
    return next(b for b in (2, 4, 8) if -(2 ** (b - 1)) <= weight.min() and weight.max() < 2 ** (b - 1))


@dataclass(frozen=True)
class LayerSize:
    """Size of the weights of a layer.

    Attributes:
        name: name of the layer.
        weights: number of weights.
        bits: bits per stored weight.
        sparsity: share of zeros.
        entropy: empirical entropy in bits per weight, the lower bound for codes of independent weights.
        packed: size in bytes as stored, see ``packed``.
        trits: size in bytes with five weights per byte; None for weights other than -1, 0, 1.
        float32: size in bytes as float32.
    """

    name: str
    weights: int
    bits: int
    sparsity: float
    entropy: float
    packed: int
    trits: int | None
    float32: int


def packed(layer: Convolution | Linear) -> bytes:
    """The stored weights of a layer: two's complement, or 32 bits per weight for a layer in fixed point."""
    if isinstance(layer, Linear) and not layer.on_levels:
        return layer.weight.astype("<i4").tobytes()
    return pack_bits(layer.weight, storage_bits(layer.weight))


def account(network: IntegerNetwork) -> tuple[LayerSize, ...]:
    """The size of each weighted layer."""
    return tuple(_size(layer) for layer in network.weighted)


def _size(layer: Convolution | Linear) -> LayerSize:
    w = layer.weight
    fixed = isinstance(layer, Linear) and not layer.on_levels
    _, counts = np.unique(w, return_counts=True)
    share = counts / w.size
    return LayerSize(
        name=layer.name,
        weights=w.size,
        bits=32 if fixed else storage_bits(w),
        sparsity=float((w == 0).mean()),
        entropy=float(-(share * np.log2(share)).sum()) + 0.0,  # not -0
        packed=len(packed(layer)),
        trits=-(-w.size // _TRITS) if np.abs(w).max() <= 1 else None,
        float32=_FLOAT_BYTES * w.size,
    )


def compression(sizes: Sequence[LayerSize]) -> float:
    """Size in float32 divided by packed size, over the layers whose weights are on levels; 1 if there is none.

    >>> compression([LayerSize("a", 1024, 2, 0.5, 1.5, 256, 205, 4096)])
    16.0
    """
    on_levels = [s for s in sizes if s.bits < 32]
    return sum(s.float32 for s in on_levels) / max(1, sum(s.packed for s in on_levels)) if on_levels else 1.0
