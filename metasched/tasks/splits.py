"""One permutation cut in three: training, validation and test examples that cannot overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from metasched.core.randomness import generator


class Indices(NamedTuple):
    """Positions of the examples of each part, int64."""

    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor


def split_indices(n: int, validation: int, test: int, seed: int) -> Indices:
    """Cuts a random permutation of 0..n-1 into test, validation and the rest, which is for training.

    The parts are disjoint and together all of 0..n-1. They are not stratified by class. The test part is cut off
    first and the validation part second, so that a change of the later sizes leaves the earlier parts as they are.

    Args:
        n: number of examples.
        validation: size of the validation part, at least 0.
        test: size of the test part, at least 0; ``validation + test <= n``.
        seed: of the permutation.

    >>> [len(part) for part in split_indices(10, validation=2, test=3, seed=0)]
    [5, 2, 3]
    """
    assert validation >= 0 and test >= 0 and validation + test <= n, (n, validation, test)
    order = torch.randperm(n, generator=generator(seed, "split"))
    return Indices(order[test + validation :], order[test : test + validation], order[:test])


def stratified_indices(labels: torch.Tensor, sizes: Sequence[int], seed: int) -> list[torch.Tensor]:
    """Disjoint parts of 0..n-1 in which each class has its share, up to one example.

    One random permutation of all examples; each part takes of each class those that come first in it and are left. Of
    a part of m examples, with r_c of the r examples left in class c, m r_c / r are of class c, rounded so that they sum
    to m (largest remainders first, of equal ones the lower class). Earlier parts do not depend on the sizes of later
    ones, and each part is in the order of the permutation.

    Args:
        labels: class of each example, int64 [n], in 0..C-1.
        sizes: of the parts, each at least 0, together at most n.
        seed: of the permutation.

    >>> [part.numel() for part in stratified_indices(torch.tensor([0, 0, 0, 0, 1, 1]), [3, 3], seed=0)]
    [3, 3]
    """
    n = len(labels)
    assert min(sizes, default=0) >= 0 and sum(sizes) <= n, (n, sizes)
    order = torch.randperm(n, generator=generator(seed, "split"))
    of_class = [order[labels[order] == c] for c in range(int(labels.max()) + 1 if n else 0)]
    place = torch.empty_like(order)
    place[order] = torch.arange(n)
    parts = []
    for size in sizes:
        counts = _apportioned(size, [len(rows) for rows in of_class])
        taken = torch.cat([rows[:count] for rows, count in zip(of_class, counts, strict=True)])
        of_class = [rows[count:] for rows, count in zip(of_class, counts, strict=True)]
        parts.append(taken[place[taken].argsort()])
    return parts


def _apportioned(size: int, available: Sequence[int]) -> list[int]:
    """``size`` shared out in proportion to what is available, in whole numbers (largest remainders)."""
    total = max(1, sum(available))
    counts = [size * count // total for count in available]
    remainders = [size * count % total for count in available]
    for c in sorted(range(len(counts)), key=lambda c: -remainders[c])[: size - sum(counts)]:
        counts[c] += 1
    return counts
