"""One permutation cut in three: training, validation and test examples that cannot overlap."""

from __future__ import annotations

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
