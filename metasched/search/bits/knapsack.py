"""Allocation as a knapsack: losses of single layers, added up, and their exact minimum under the budget."""

from __future__ import annotations

from collections.abc import Sequence

from metasched.search.bits.problem import BitProblem, Judge
from metasched.search.config import AllocateConfig


def knapsack(problem: BitProblem, judge: Judge, settings: AllocateConfig, seed: int) -> None:
    """The allocation with the least sum of the losses that each layer has alone.

        loss(l, b) = score(all layers at the most bits) - score(the same, with layer l at b)

    The sum is a model: what layers lose together is not the sum of what they lose alone. It takes L (B - 1) + 2
    evaluations, whatever ``allocate.evaluations``; ``seed`` has no effect.

    Args:
        problem, judge, settings, seed: see ``BitSearchSpec``.
    """
    top = problem.highest
    at_top = judge(top)
    losses = [
        [at_top - judge((*top[:layer], b, *top[layer + 1 :])) for b in range(len(problem.bits))]
        for layer in range(len(top))
    ]
    judge(least_loss(losses, problem.cost, problem.budget * (1 + 1e-9) - problem.fixed))


def least_loss(losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float) -> tuple[int, ...]:
    """The choice of one entry a row with the least sum of losses whose costs add up to at most the budget; exact.

    Rows are added one by one. Of all sums so far only those are kept that no other one beats in both cost and loss.

    Args:
        losses: [L][B].
        costs: [L][B], 0 or more.
        budget: at least the sum of the least costs.

    >>> least_loss([[3.0, 0.0], [1.0, 0.0]], [[1, 2], [1, 2]], budget=3)
    (1, 0)
    """
    rest = [sum(min(row) for row in costs[i:]) for i in range(len(costs) + 1)]
    kept: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]  # cost, loss, choice; cost rises and loss falls
    for i, (of_loss, of_cost) in enumerate(zip(losses, costs, strict=True)):
        grown = [
            (cost + more, loss + worse, (*choice, b))
            for cost, loss, choice in kept
            for b, (more, worse) in enumerate(zip(of_cost, of_loss, strict=True))
            if cost + more + rest[i + 1] <= budget
        ]
        kept = []
        for entry in sorted(grown):
            if not kept or entry[1] < kept[-1][1]:
                kept.append(entry)
    assert kept, "nothing fits"
    return kept[-1][2]
