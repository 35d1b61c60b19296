"""Population-based training of whole runs: copies the best schedules of a population and perturbs them.

    first:        the start and P - 1 random points are scored
    each round:   the worst fifth is replaced by copies of the best fifth, each coordinate moved by +0.2 or -0.2

Source: Jaderberg et al., 2017, arXiv 1711.09846 (truncation selection, perturbation). We differ: a member is a whole
run, and no weights are copied, because a training function is a closed box; ``metasched tune`` has the one that copies
weights in the middle of runs (search/population.py). Members that are not replaced keep their score.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metasched.core.randomness import generator
from metasched.search.population import SHARE, STEP


class Population:
    """A Searcher: proposes the points of a population, then those of each round.

    Args:
        first: the point of the first member, in [-1, 1]^n.
        seed: of its draws.
        size: P, at least 5.
    """

    def __init__(self, first: Sequence[float], seed: int, size: int) -> None:
        self._draws = generator(seed, "population")
        start = torch.tensor(first, dtype=torch.float64)
        others = 2 * torch.rand(size - 1, len(start), generator=self._draws, dtype=torch.float64) - 1
        self._members: list[torch.Tensor] = [start, *others]
        self._scores: list[float | None] = [None] * size
        self._asked: list[int] = []
        self._waiting = list(range(size))

    @property
    def ahead(self) -> int:
        """What is left of a round, or a whole one."""
        return len(self._waiting) or len(self._members) // SHARE

    def ask(self) -> list[float]:
        """The next point to try."""
        if not self._waiting:
            self._replace()
        self._asked.append(self._waiting.pop(0))
        return self._members[self._asked[-1]].tolist()

    def tell(self, score: float) -> None:
        """Reports the score of the first point that has none yet."""
        self._scores[self._asked.pop(0)] = score

    def _replace(self) -> None:
        scores = [float("-inf") if score is None else score for score in self._scores]
        order = sorted(range(len(scores)), key=lambda i: scores[i])
        self._waiting = order[: len(order) // SHARE]
        for worst, best in zip(self._waiting, reversed(order), strict=False):
            up = torch.rand(self._members[best].shape, generator=self._draws, dtype=torch.float64) < 0.5
            self._members[worst] = (self._members[best] + torch.where(up, STEP, -STEP)).clamp(-1, 1)
