"""From raw scores to tables: means by task, Student's t over tasks and over searches, ranks, wins, Holm."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from metasched.arena.per_task import per_task, plain, results_of
from metasched.arena.scores import Line, Scores, TaskInfo
from metasched.arena.tables import FLOOR, Row, tables
from metasched.core.errors import MetaschedError
from metasched.io.json_text import json_text

TASKS, SEEDS = 6, 5
ARMS = ("float", "ste", "lsq", "mine", "other", "tpe_10")


def raw(seed: int = 0) -> Scores:
    """Random scores: ``lsq`` is the floor of even tasks by its validation score, ``tpe_10`` has three searches."""
    draws = np.random.default_rng(seed)
    tasks, lines = {}, []
    for t in range(TASKS):
        name = f"task.{t}"
        tasks[name] = TaskInfo(task=name, family="task", part="test", seeds=tuple(range(SEEDS)), key=name, steps=10)
        for arm in ARMS:
            validation = float(t % 2 == (arm == "ste")) if arm in ("ste", "lsq") else None
            for search in (1, 2, 3) if arm == "tpe_10" else (0,):
                scores = tuple(draws.uniform(size=SEEDS).tolist())
                lines.append(
                    Line(
                        task=name, arm=arm, kind=arm, horizon=1, scores=scores, key="k", search=search,
                        validation=validation, spent=50,
                    )
                )  # fmt: skip
    return Scores(tasks, tuple(lines))


def matrix(scores: Scores, arm: str) -> np.ndarray:
    """[tasks, searches, seeds] of an arm."""
    return np.array([[x.scores for x in scores.lines if (x.arm, x.task) == (arm, task)] for task in scores.tasks])


def rows(scores: Scores, against: str = FLOOR) -> dict[str, Row]:
    (table,) = tables(per_task(scores), [against])
    return {row.arm: row for row in table.rows}


def floor(scores: Scores) -> np.ndarray:
    ste, lsq = matrix(scores, "ste"), matrix(scores, "lsq")
    return np.array([(lsq if t % 2 == 0 else ste)[t].mean() for t in range(TASKS)])


@pytest.mark.parametrize("arm", ["mine", "other", "tpe_10", "float"])
def test_the_interval_over_tasks_is_scipys_of_the_means_by_task(arm: str) -> None:
    scores = raw()
    difference = matrix(scores, arm).mean((1, 2)) - floor(scores)
    expected: Any = stats.ttest_1samp(difference, 0.0)
    low, high = expected.confidence_interval(0.95)
    d = rows(scores)[arm].difference
    assert d is not None and d.n == TASKS
    assert (d.mean, d.low, d.high, d.p) == pytest.approx((difference.mean(), low, high, expected.pvalue))


def test_the_interval_over_searches_is_scipys_of_the_means_over_tasks_of_each_search() -> None:
    scores = raw()
    each = matrix(scores, "tpe_10").mean((0, 2)) - floor(scores).mean()
    low, high = stats.ttest_1samp(each, 0.0).confidence_interval(0.95)
    d = rows(scores)["tpe_10"].searches
    assert d is not None and d.n == 3
    assert (d.mean, d.low, d.high) == pytest.approx((each.mean(), low, high))
    assert rows(scores)["mine"].searches is None


def test_p_values_are_corrected_for_the_arms_but_not_for_floors_and_ceiling() -> None:
    found = rows(raw())
    corrected = {name: row.p for name, row in found.items() if row.p is not None}
    assert set(corrected) == {"mine", "other", "tpe_10"}
    plain_p = {name: found[name].difference.p for name in corrected}  # pyright: ignore[reportOptionalMemberAccess]
    order = sorted(plain_p, key=lambda name: plain_p[name])
    expected = np.maximum.accumulate([min(1.0, (3 - i) * plain_p[name]) for i, name in enumerate(order)])
    assert [corrected[name] for name in order] == pytest.approx(list(expected))


def test_ranks_and_wins_leave_the_ceiling_out() -> None:
    scores = raw()
    names = [arm for arm in ARMS if arm != "float"]
    means = np.array([matrix(scores, arm).mean((1, 2)) for arm in names])
    ranks = stats.rankdata(-means, axis=0)
    found = rows(scores)
    assert [found[arm].rank for arm in names] == pytest.approx(ranks.mean(1))
    assert [found[arm].wins for arm in names] == (means == means.max(0)).sum(1).tolist()
    assert found["float"].rank is None and found["mine"].runs == 5  # 50 steps at 10 a run


def test_against_another_arm_and_none_of_that_name() -> None:
    scores = raw()
    found = rows(scores, "other")
    difference = (matrix(scores, "mine") - matrix(scores, "other")).mean((1, 2))
    assert found["mine"].difference is not None and found["other"].difference is None
    assert found["mine"].difference.mean == pytest.approx(difference.mean())
    assert found["mine"].above == (difference > 0).sum()
    with pytest.raises(MetaschedError, match="--against: unknown name 'othr'; did you mean 'other'"):
        rows(scores, "othr")


def test_paired_differences_on_a_task_are_over_seeds() -> None:
    scores = raw()
    arm = per_task(scores)[1].arms["mine"]
    expected: Any = stats.ttest_rel(matrix(scores, "mine")[1, 0], matrix(scores, "ste")[1, 0])
    assert arm.over_floor is not None and arm.over_floor.n == SEEDS
    assert arm.over_floor.p == pytest.approx(expected.pvalue)


def test_at_a_horizon_where_nothing_was_tuned_the_floor_has_the_better_mean() -> None:
    scores = raw()
    longer = tuple(replace(line, horizon=3) for line in scores.lines)
    results = per_task(Scores(scores.tasks, (*scores.lines, *longer)))
    means = {arm: matrix(scores, arm).mean((1, 2)) for arm in ("ste", "lsq")}
    better = ["lsq" if means["lsq"][t] > means["ste"][t] else "ste" for t in range(TASKS)]
    assert [r.floor for r in results if r.horizon == 3] == better
    assert (
        [r.floor for r in results if r.horizon == 1] == ["lsq" if t % 2 == 0 else "ste" for t in range(TASKS)] != better
    )


def test_each_level_is_read_back_as_it_was_written() -> None:
    results = per_task(raw())
    again = results_of(json.loads(json_text(plain(results))))
    assert again == results and tables(again) == tables(results)


def test_a_run_that_diverged_counts_as_the_worst_and_an_arm_that_broke_is_left_out() -> None:
    scores = raw()
    nan, lowest = (math.nan,) * SEEDS, min(min(x.scores) for x in scores.lines if x.task == "task.0")
    first = scores.tasks["task.0"]
    lines = [x for x in scores.lines if (x.task, x.arm) not in {("task.0", "mine"), ("task.1", "mine")}]
    lines.append(Line(task="task.0", arm="mine", kind="mine", horizon=1, scores=nan, key="k"))
    lines.append(Line(task="task.1", arm="mine", kind="mine", horizon=1, scores=nan, error="it broke"))
    results = per_task(Scores(scores.tasks, tuple(lines)))
    lowest = min(min(x.scores) for x in lines if x.task == "task.0" and x.arm != "mine")
    assert results[0].arms["mine"].mean == pytest.approx(lowest) and results[0].arms["mine"].diverged == SEEDS
    assert "mine" not in results[1].arms and results[1].broken == {"mine": "it broke"}
    row = {r.arm: r for r in tables(results)[0].rows}["mine"]
    assert (row.n, row.broken, row.diverged) == (TASKS - 1, 1, SEEDS)
    assert first.worst is None
