"""Masks of a share of a layer's weights, in the order of a key: exact, and relaxed so that the share has a derivative.

The k-th of n elements in decreasing order of the key has the rank r = (k - 1/2) / n. With the share f,

    exact mask      1 where r <= f, else 0
    relaxed mask    S((f (1 + omega) - r) / omega),   S(z) = 3 z^2 - 2 z^3 for z clipped to [0, 1]

At equal keys the first elements come first, so that counts are exact.
"""

from __future__ import annotations

import numpy as np
import torch


def unchanged(frozen: torch.Tensor, fraction: torch.Tensor) -> bool:
    """Whether the exact mask of a fraction (0-d) is the one that is there, [...], by the number of its elements.

    For keys by which those that are in the mask come first: their number then says which ones they are.
    """
    try:
        return int(frozen.count_nonzero()) == count(frozen.numel(), float(fraction), counting(frozen.dtype))
    except RuntimeError:  # under torch.vmap a tensor has no value to read
        return False


def count(n: int, fraction: float, dtype: torch.dtype) -> int:
    """How many of the ranks (i + 1/2) / n are at most the fraction, with the rounding of ``_ranks``."""
    number = np.float32 if dtype == torch.float32 else np.float64
    whole, limit, half = number(n), number(fraction), number(0.5)
    count = int(min(1.0, max(0.0, fraction)) * n + 0.5)  # what is not a number counts as 0: no rank is at most that
    while count < n and (number(count) + half) / whole <= limit:
        count += 1
    while count > 0 and (number(count - 1) + half) / whole > limit:
        count -= 1
    return count


def counting(dtype: torch.dtype) -> torch.dtype:
    """The dtype of ranks and fractions beside weights of this dtype: float16 ends at 65504, bfloat16 counts to 256."""
    return torch.promote_types(dtype, torch.float32)


def _ranks(key: torch.Tensor) -> torch.Tensor:
    """The ranks (i + 1/2) / n in increasing order, [n], in float32 or float64."""
    n = key.numel()
    return (torch.arange(n, dtype=counting(key.dtype), device=key.device) + 0.5) / n


def relaxed_mask(key: torch.Tensor, fraction: torch.Tensor, width: float, top: float = 1.0) -> torch.Tensor:
    """The mask S((f (1 + omega) - r) / omega), with the shape of ``key``; the largest key has the lowest rank r.

    Args:
        key: [...], in whose decreasing order elements are taken.
        fraction: f, 0-d, of those that can be taken.
        width: omega > 0.
        top: the share of all elements that can be taken: the first ones, whose ranks count from 0 to 1.
    """
    ranks = _ranks(key)
    z = ((fraction * (1 + width) - ranks / top) / width).clamp(0, 1)
    smooth = z * z * (3 - 2 * z)
    return _in_order(key, (smooth if top == 1 else smooth * (ranks <= top)).to(key.dtype))


def exact_mask(key: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """1 for the given fraction of the elements, those with the largest keys (at ties the first ones), else 0."""
    try:
        return _largest(key, count(key.numel(), float(fraction), counting(key.dtype))).to(key.dtype)
    except RuntimeError:  # under torch.vmap a tensor has no value to read
        return _in_order(key, (_ranks(key) <= fraction).to(key.dtype))


def _largest(key: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of the ``count`` largest keys, at ties the first ones; takes a tenth of the time of sorting."""
    if count == 0:
        return torch.zeros_like(key, dtype=torch.bool)
    least = key.flatten().kthvalue(key.numel() - count + 1).values
    chosen = key >= least
    if int(chosen.sum()) > count:  # ties at the smallest chosen key
        chosen = key > least
        at = (key == least).flatten()
        chosen |= (at & (at.cumsum(0) <= count - chosen.sum())).reshape(key.shape)
    return chosen


def _in_order(key: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Assigns values[0] to the position of the largest key, and so on; equal keys in order of position."""
    order = key.flatten().argsort(descending=True, stable=True)
    return torch.zeros_like(values).index_copy(0, order, values).reshape(key.shape)
