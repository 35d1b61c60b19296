"""Which tasks of a family are drawn, so that cheap ones come more often and count less.

    q_e = p_e / sqrt(c_e), normalized to sum 1,    weight of a task of entry e = p_e / q_e

p_e is the share of entry e, and c_e the mean cost of a run of a few tasks that are drawn from it. For any q the mean
of weight times gradient is that of the gradient under p; this q spreads a budget as is best where all entries have
equally noisy gradients. Within an entry all tasks are equally likely: to draw short ones more often, split it in two.

n tasks are drawn at the equally spaced points (u + k) / n of the cumulated q, with one uniform u: each of them has the
distribution q, and an entry of probability q is drawn n q times, rounded up or down. Source of the points: systematic
sampling, Madow and Madow, Annals of Mathematical Statistics 15, 1944.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean
from typing import NamedTuple

import torch

from metasched.core.randomness import derive_seed, generator
from metasched.families.family import DrawnTask, TaskFamily

EXAMPLES = 3  # tasks of an entry that are looked at before any work


class Weighed(NamedTuple):
    """A drawn task, and what it counts in a mean over tasks."""

    task: DrawnTask
    weight: float


def shares(family: TaskFamily) -> list[float]:
    """p_e of each entry, with sum 1."""
    weights = [entry.weight for entry in family.config.entries]
    return [weight / math.fsum(weights) for weight in weights]


def few_of_each(family: TaskFamily, seed: int) -> list[list[DrawnTask]]:
    """EXAMPLES tasks of each entry, or its only one."""
    return [
        [family.drawn(entry, derive_seed(seed, "example", e, i)) for i in range(EXAMPLES if entry.draw else 1)]
        for e, entry in enumerate(family.config.entries)
    ]


def cheaper(share: Sequence[float], costs: Sequence[float]) -> list[float]:
    """q_e from the shares p_e and the costs c_e of the entries.

    >>> cheaper([0.5, 0.5], [1.0, 9.0])
    [0.75, 0.25]
    """
    raw = [p / math.sqrt(cost) for p, cost in zip(share, costs, strict=True)]
    return [x / math.fsum(raw) for x in raw]


def mean_costs(examples: Sequence[Sequence[DrawnTask]]) -> list[float]:
    """The mean cost of the tasks of each entry."""
    return [fmean(task.cost for task in of_entry) for of_entry in examples]


def entries_at(u: float, n: int, probabilities: Sequence[float]) -> list[int]:
    """The n entries that are drawn with a uniform u in [0, 1).

    >>> entries_at(0.5, 4, [0.5, 0.3, 0.2])
    [0, 0, 1, 2]
    """
    ends = list(accumulate(probabilities))
    ends[-1] = 1.0
    return [next(e for e, end in enumerate(ends) if (u + k) / n < end) for k in range(n)]


def drawn_tasks(family: TaskFamily, seed: int, n: int, probabilities: Sequence[float] | None = None) -> list[Weighed]:
    """So many tasks with their weights: a function of the seed and the probabilities q of entries (None: their shares).

    Raises:
        MetaschedError: the fields of one do not make an experiment.
    """
    share = shares(family)
    q = share if probabilities is None else probabilities
    u = float(torch.rand((), generator=generator(seed, "tasks"), dtype=torch.float64))
    entries = family.config.entries
    return [
        Weighed(family.drawn(entries[e], derive_seed(seed, "task", k)), share[e] / q[e])
        for k, e in enumerate(entries_at(u, n, q))
    ]


def distinct(drawn: Sequence[Weighed]) -> list[DrawnTask]:
    """The tasks without repetitions, in their order: where nothing is drawn, an entry gives one task only."""
    return list({w.task.problem: w.task for w in drawn}.values())
