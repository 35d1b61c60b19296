"""A portfolio from a matrix of scores: greedy on ranks, and what choosing from it flatters.

On each case, a task at a horizon, schedules are ranked by their mean score over seeds, 1 for the best, equal ones with
the mean of their ranks. The first entry has the best mean rank. Then the schedule is added that lowers the mean over
cases of the best rank so far most, as long as one lowers it. At ties the earlier schedule is taken. Tasks count
equally, however many horizons they have. The rule is that of zero-shot portfolios in TabRepo (Salinas and Erickson,
AutoML 2024; autogluon/tabrepo, zeroshot_selection.py), which has one horizon a task.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from metasched.arena.scores import Line, Scores
from metasched.core.errors import MetaschedError
from metasched.evaluation.statistics import counted, lowest
from metasched.exchange.portfolios import MOST, Curse

_DIGITS = 9  # of means; scores have seven
Array = npt.NDArray[np.float64]


class Recipe(NamedTuple):
    """What a portfolio is for; ``parameters`` as sorted pairs of names and texts."""

    method: str
    levels: str
    activation_levels: str | None
    parameters: tuple[tuple[str, str], ...]


class Matrix(NamedTuple):
    """Scores of schedules on cases, of one recipe.

    Attributes:
        schedules: a line of each of the S schedules, for its name, place and hash.
        cases: (task, horizon) of each of the C cases.
        scores: [C, S, n], as they count, of n seeds.
        left_out: lines that say what is not in it, and why.
    """

    schedules: tuple[Line, ...]
    cases: tuple[tuple[str, int], ...]
    scores: Array
    left_out: tuple[str, ...]

    @property
    def weights(self) -> Array:
        """[C] of the cases, in sum 1: equal for all tasks, and for the horizons of a task."""
        tasks = [task for task, _ in self.cases]
        return np.array([1 / (len({*tasks}) * tasks.count(task)) for task in tasks])


def matrices(scores: Scores, without: Collection[str] = ()) -> dict[Recipe, Matrix]:
    """The matrix of each recipe, from schedules that are the same on all tasks.

    Args:
        scores: raw ones, of the validation part.
        without: families of tasks whose scores play no part.

    Raises:
        MetaschedError: scores of the test part, no such family, or nothing to choose from.
    """
    families = {info.family for info in scores.tasks.values()}
    for name in without:
        if name not in families:
            raise MetaschedError("--without", f"no task is of a family {name!r}", f"use {', '.join(sorted(families))}")
    kept = [info for info in scores.tasks.values() if info.family not in without]
    if read := sorted({info.task for info in kept if info.part == "test"}):
        problem = f"has scores of the test part ({read[0]}), which are for judging"
        raise MetaschedError("portfolio", problem, "set arena.part: validation, and run the arena again")
    first: dict[str, str] = {}
    for info in kept:
        first.setdefault(info.key or info.task, info.task)
    same = [info.task for info in kept if info.task not in first.values()]
    names = {*first.values()}
    lines = [line for line in scores.whole if line.task in names and line.schedule is not None]
    recipes = dict.fromkeys(map(_recipe, lines))
    found = {recipe: _matrix(scores, [line for line in lines if _recipe(line) == recipe], same) for recipe in recipes}
    if not found:
        problem = "no schedule that is the same on all tasks was played"
        raise MetaschedError("portfolio", problem, "play arms such as constants, hand_coded or schedule")
    return found


def _recipe(line: Line) -> Recipe:
    own = tuple(sorted((name, repr(value)) for name, value in (line.parameters or {}).items()))
    return Recipe(line.method, line.levels, line.activation_levels, own)


def _matrix(scores: Scores, lines: Sequence[Line], same: Sequence[str]) -> Matrix:
    """The matrix of the schedules that were played on all cases."""
    cases = list(dict.fromkeys((line.task, line.horizon) for line in lines))
    by_schedule: dict[Any, dict[tuple[str, int], Line]] = {}
    for line in lines:
        by_schedule.setdefault((line.schedule, line.hash), {}).setdefault((line.task, line.horizon), line)
    whole = [own for own in by_schedule.values() if len(own) == len(cases)]
    left_out = [f"{task}: is a task that is there already" for task in same]
    left_out += [
        f"{next(iter(own.values())).arm}: has scores on {len(own)} of {len(cases)} tasks and horizons"
        for own in by_schedule.values()
        if len(own) < len(cases)
    ]
    if not whole:
        problem = "no schedule was played on all tasks and horizons"
        raise MetaschedError("portfolio", problem, "play each schedule on each task, or leave families out")
    seeds = {len(scores.tasks[task].seeds) for task, _ in cases}
    if len(seeds) > 1:
        raise MetaschedError("portfolio", "tasks have different numbers of seeds", "use the same arena.seeds for all")
    values = []
    for case in cases:
        own, worst = [schedule[case].scores for schedule in whole], scores.tasks[case[0]].worst
        worst = lowest([score for row in own for score in row]) if worst is None else worst
        values.append([counted(row, worst) for row in own])
    shown = tuple(next(iter(own.values())) for own in whole)
    return Matrix(shown, tuple(cases), np.array(values, dtype=np.float64), tuple(left_out))


def ranked(means: Array) -> Array:
    """The rank of each schedule on each case, [C, S], from their means [C, S]; 1 is the highest mean.

    Means that differ by rounding alone are equal.
    """
    means = np.round(means, _DIGITS)
    above = (means[:, None, :] > means[:, :, None]).sum(2)
    equal = (means[:, None, :] == means[:, :, None]).sum(2)
    return above + (equal + 1) / 2


def greedy(ranks: Array, weights: Array, most: int = MOST) -> tuple[list[int], list[float]]:
    """The order of the schedules, and after each the mean of the best rank so far.

    Args:
        ranks: [C, S].
        weights: [C] of the cases, in sum 1.
        most: entries at most.
    """
    chosen, after = [], []
    best = np.full(len(ranks), np.inf)
    while len(chosen) < most:
        means = weights @ np.minimum(best[:, None], ranks)
        index = int(np.argmin(np.round(means, 12)))  # of equal ones the first, whatever their rounding
        if after and not means[index] < after[-1] - 1e-12:
            break
        chosen.append(index)
        after.append(float(means[index]))
        best = np.minimum(best, ranks[:, index])
    return chosen, after


def regret(means: Array, weights: Array, order: Sequence[int]) -> list[float]:
    """For k = 1, 2, ...: how far the best of the first k lies below the best schedule of all, in the mean over cases.

    Args:
        means: [C, S].
        weights: [C].
        order: of a portfolio.
    """
    first = np.maximum.accumulate(means[:, list(order)], axis=1)
    return (weights @ (means.max(1, keepdims=True) - first)).tolist()


def curse(scores: Array, weights: Array) -> tuple[Curse, ...]:
    """Half of the seeds choose the portfolio and, on each case, among its first k; the others score what was chosen.

    Then the halves change places, and the means of both are given: the seeds of one half may be easier.

    Args:
        scores: [C, S, n]; of seeds with even and with odd indices.
        weights: [C].

    Returns:
        one for each k; none with fewer than two seeds.
    """
    if scores.shape[2] < 2:
        return ()
    even, odd = scores[:, :, ::2].mean(2), scores[:, :, 1::2].mean(2)
    both = zip(_chosen(even, odd, weights), _chosen(odd, even, weights), strict=False)
    return tuple(
        Curse(k=k, chosen=(a + b) / 2, fresh=(on_b + on_a) / 2) for k, ((a, on_b), (b, on_a)) in enumerate(both, 1)
    )


def _chosen(choosing: Array, fresh: Array, weights: Array) -> list[tuple[float, float]]:
    """For each k the mean over cases of the score that chose, and that of what was chosen from other seeds."""
    order, _ = greedy(ranked(choosing), weights)
    rows, found = np.arange(len(choosing)), []
    for k in range(1, len(order) + 1):
        best = np.array(order[:k])[choosing[:, order[:k]].argmax(1)]
        found.append((float(weights @ choosing[rows, best]), float(weights @ fresh[rows, best])))
    return found
