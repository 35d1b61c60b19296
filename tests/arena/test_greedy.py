"""Portfolios from scores: the order of a brute-force rule, and what must not change it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from metasched.arena.greedy import Matrix, curse, greedy, matrices, ranked, regret
from metasched.arena.scores import Line, Scores, TaskInfo
from metasched.core.errors import MetaschedError


def scores(seed: int = 0, tasks: int = 6, schedules: int = 7) -> Scores:
    """Random scores on a coarse grid, so that there are ties."""
    draws, seeds, horizons = np.random.default_rng(seed), 4, (1, 3)
    infos = [
        TaskInfo(task=f"t{i}", family=f"f{i % 3}", part="validation", seeds=tuple(range(seeds)), key=f"k{i}", steps=10)
        for i in range(tasks)
    ]
    lines = [
        Line(
            task=info.task, arm=f"s{s}", kind="schedule", horizon=horizon, key="k", method="ana", levels="ternary",
            schedule=f"s{s}", scores=tuple((draws.integers(0, 12, seeds) / 10).tolist()),
        )
        for info, s, horizon in product(infos, range(schedules), horizons)
    ]  # fmt: skip
    return Scores({info.task: info for info in infos}, tuple(lines))


def only(found: Scores, **arguments: Any) -> Matrix:
    (matrix,) = matrices(found, **arguments).values()
    return matrix


def order(found: Scores, **arguments: Any) -> list[str]:
    matrix = only(found, **arguments)
    chosen, _ = greedy(ranked(matrix.scores.mean(2)), matrix.weights)
    return [matrix.schedules[i].arm for i in chosen]


def brute_force(found: Scores, most: int = 8) -> list[str]:
    """The rule in plain Python: sets of schedules, means over tasks of means over horizons of best ranks."""
    tasks = sorted(found.tasks)
    horizons = sorted({line.horizon for line in found.lines})
    names = sorted({line.arm for line in found.lines})
    rank: dict[tuple[str, int], dict[str, float]] = {}
    for task, horizon in product(tasks, horizons):
        here = [line for line in found.lines if (line.task, line.horizon) == (task, horizon)]
        mean = {line.arm: sum(round(10 * score) for score in line.scores) for line in here}  # exact: tenths
        own = stats.rankdata([-mean[name] for name in names])
        rank[task, horizon] = dict(zip(names, own, strict=True))

    def value(chosen: list[str]) -> float:
        best = [[min(rank[t, h][name] for name in chosen) for h in horizons] for t in tasks]
        return round(math.fsum(math.fsum(row) / len(row) for row in best) / len(best), 9)

    chosen: list[str] = []
    while len(chosen) < most:
        left = [name for name in names if name not in chosen]
        best = min(left, key=lambda name: value([*chosen, name])) if left else None
        if best is None or (chosen and value([*chosen, best]) >= value(chosen)):
            return chosen
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("seed", range(25))
def test_the_order_is_that_of_the_rule_by_brute_force(seed: int) -> None:
    found = scores(seed)
    assert order(found) == brute_force(found)


def test_at_most_eight_and_no_schedule_that_gains_nothing() -> None:
    found = scores(1, tasks=40, schedules=20)
    assert len(order(found)) == 8
    best = replace_scores(found, lambda line: (2.0,) * 4 if line.arm == "s3" else line.scores)
    assert order(best) == ["s3"]


def replace_scores(found: Scores, change: Any) -> Scores:
    return Scores(found.tasks, tuple(replace(line, scores=tuple(change(line))) for line in found.lines))


@pytest.mark.parametrize("seed", range(5))
def test_regret_does_not_rise_with_k_and_ends_at_zero_with_all(seed: int) -> None:
    matrix = only(scores(seed))
    means = matrix.scores.mean(2)
    chosen, after = greedy(ranked(means), matrix.weights)
    curve = regret(means, matrix.weights, chosen)
    assert all(a >= b for a, b in pairwise(curve)) and all(r >= 0 for r in curve)
    assert all(a > b for a, b in pairwise(after))
    assert regret(means, matrix.weights, range(means.shape[1]))[-1] == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_task_that_is_there_twice_changes_nothing(seed: int) -> None:
    found = scores(seed)
    copy = {**found.tasks, "again": replace(found.tasks["t2"], task="again")}
    more = [replace(line, task="again") for line in found.lines if line.task == "t2"]
    twice = Scores(copy, (*found.lines, *more))
    assert order(twice) == order(found)
    assert only(twice).left_out == ("again: is a task that is there already",)
    every = {f"{n}.b": replace(i, task=f"{n}.b", key=f"{i.key}.b") for n, i in found.tasks.items()}
    doubled = Scores(found.tasks | every, (*found.lines, *(replace(x, task=f"{x.task}.b") for x in found.lines)))
    assert order(doubled) == order(found)


def test_a_family_that_is_left_out_is_not_read() -> None:
    found = scores(3)
    names = {info.task for info in found.tasks.values() if info.family == "f1"}
    other = replace_scores(found, lambda x: (9.0 if x.arm == "s6" else math.nan,) * 4 if x.task in names else x.scores)
    assert order(other, without=["f1"]) == order(found, without=["f1"])
    assert order(other) != order(found)
    assert {task for task, _ in only(other, without=["f1"]).cases}.isdisjoint(names)
    held = Scores({n: replace(i, part="test") if n in names else i for n, i in found.tasks.items()}, found.lines)
    assert order(held, without=["f1"]) == order(found, without=["f1"])
    with pytest.raises(MetaschedError, match="scores of the test part"):
        order(held)
    with pytest.raises(MetaschedError, match="no task is of a family 'f9'"):
        order(found, without=["f9"])


def test_what_lacks_a_task_is_left_out_and_recipes_do_not_mix() -> None:
    found = scores(4)
    lines = [x for x in found.lines if (x.task, x.arm) != ("t1", "s0")]
    matrix = only(Scores(found.tasks, tuple(lines)))
    assert [line.arm for line in matrix.schedules] == [f"s{i}" for i in range(1, 7)]
    assert matrix.left_out == ("s0: has scores on 10 of 12 tasks and horizons",)
    two = [replace(line, levels="int4") if line.arm in ("s0", "s1") else line for line in found.lines]
    by_levels = {r.levels: len(m.schedules) for r, m in matrices(Scores(found.tasks, tuple(two))).items()}
    assert by_levels == {"int4": 2, "ternary": 5}
    with pytest.raises(MetaschedError, match="no schedule that is the same on all tasks"):
        matrices(Scores(found.tasks, tuple(replace(line, schedule=None) for line in found.lines)))


def test_runs_that_diverged_count_as_the_worst_of_their_case() -> None:
    found = replace_scores(scores(5), lambda line: (math.nan,) * 4 if line.arm == "s0" else line.scores)
    means = only(found).scores.mean(2)
    assert (means[:, 0] <= means[:, 1:].min(1)).all()


def test_the_score_at_choice_flatters_where_schedules_differ_by_luck_alone() -> None:
    luck = np.random.default_rng(0).normal(size=(60, 10, 8))
    found = curse(luck, np.full(60, 1 / 60))
    assert [c.k for c in found] == list(range(1, len(found) + 1))
    assert found[-1].chosen > 0.4 and abs(found[-1].fresh) < 0.2
    assert curse(luck[:, :, :1], np.full(60, 1 / 60)) == ()
    exact = np.repeat(np.arange(10.0)[None, :, None].repeat(60, 0), 8, axis=2)
    assert [(c.chosen, c.fresh) for c in curse(exact, np.full(60, 1 / 60))] == [pytest.approx((9.0, 9.0))]
