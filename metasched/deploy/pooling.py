"""Poolings in integers: the maximum of each window, and the average as a sum whose unit is smaller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from metasched.deploy.folding import Folding, unsupported
from metasched.deploy.stages import Add, Array, MaxPool, Pair, SumPool
from metasched.deploy.sums import averaged, reach_of


def pair(value: int | tuple[int, ...]) -> Pair:
    """(vertical, horizontal)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def windows(size: tuple[int, int], kernel: list[int], stride: Pair, padding: Pair) -> list[int]:
    """The size of an output, (height, width)."""
    return [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)]


def max_pool(folding: Folding, name: str, module: nn.Module) -> None:
    """Adds a MaxPool2d."""
    assert isinstance(module, nn.MaxPool2d)
    if module.dilation not in (1, (1, 1)) or module.ceil_mode or module.return_indices:
        raise unsupported(name, "is a MaxPool2d with dilation, ceil_mode or return_indices")
    pool = MaxPool(pair(module.kernel_size), pair(module.stride), pair(module.padding))
    if pool == MaxPool((1, 1), (1, 1), (0, 0)):
        return
    _, height, width = folding.shape
    folding.shape = (folding.shape[0], *windows((height, width), list(pool.kernel), pool.stride, pool.padding))
    folding.stages.append(pool)


def _average(folding: Folding, name: str, rows: list[range], columns: list[range]) -> None:
    channels, height, width = folding.shape
    matrices = _windows_matrix(rows, height), _windows_matrix(columns, width)
    folding.shape = (channels, len(rows), len(columns))
    if all(np.array_equal(m, np.eye(len(m))) for m in matrices):
        return
    factor = int(matrices[0][0].sum() * matrices[1][0].sum())
    if folding.joined is not None:
        total, added = averaged(folding.joined, factor), folding.stages[-1]
        assert isinstance(added, Add)
        folding.joined, folding.largest = total, reach_of(total.multipliers, folding.joined.reach)
        folding.stages[-1] = replace(
            added, ours=total.multipliers[0], theirs=total.multipliers[1], reach=folding.largest
        )
    folding.largest *= factor
    folding.stages.append(SumPool(name, *matrices, folding.largest))
    if folding.joined is not None:
        return
    if folding.open is None:
        folding.step /= factor
    else:
        folding.open = [c._replace(step=c.step / factor) for c in folding.open]


def _windows_matrix(places: list[range], size: int) -> Array:
    """Integer matrix [len(places), size], proportional to the average over each of the places."""
    multiple = math.lcm(*map(len, places))
    return np.array([[multiple // len(w) if i in w else 0 for i in range(size)] for w in places], np.int64)


def adaptive_average(folding: Folding, name: str, module: nn.Module) -> None:
    """Adds an AdaptiveAvgPool2d."""
    assert isinstance(module, nn.AdaptiveAvgPool2d)
    size, (_, *given) = module.output_size, folding.shape
    wanted: Sequence[int | None] = size if isinstance(size, tuple) else (size, size)
    counts = [(n, m or n) for n, m in zip(given, wanted, strict=True)]
    rows, columns = ([range(i * n // m, -(-(i + 1) * n // m)) for i in range(m)] for n, m in counts)
    _average(folding, name, rows, columns)


def fixed_average(folding: Folding, name: str, module: nn.Module) -> None:
    """Adds an AvgPool2d."""
    assert isinstance(module, nn.AvgPool2d)
    if pair(module.padding) != (0, 0) or module.ceil_mode or module.divisor_override:
        raise unsupported(name, "is an AvgPool2d with padding, ceil_mode or divisor_override")
    kernel, stride = pair(module.kernel_size), pair(module.stride)
    _, height, width = folding.shape
    counts = windows((height, width), list(kernel), stride, (0, 0))
    rows, columns = (
        [range(i * s, i * s + k) for i in range(m)] for m, k, s in zip(counts, kernel, stride, strict=True)
    )
    _average(folding, name, rows, columns)
