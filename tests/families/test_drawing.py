"""Which tasks are drawn: unbiased by exact enumeration, cheap ones more often."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasched.config.load import experiment_of
from metasched.families.drawing import (
    EXAMPLES,
    cheaper,
    distinct,
    drawn_tasks,
    entries_at,
    few_of_each,
    mean_costs,
    shares,
)
from metasched.families.family import TaskFamily

SMALL = {"name": "small", "weight": 2.0, "set": {"task.model": "mlp", "task.width": 2, "task.steps": 10}}
LARGE = {"name": "large", "set": {"task.model": "mlp", "task.width": 32, "task.steps": 40}}
DRAWN = {"name": "drawn", "set": {"task.model": "mlp"}, "draw": {"task.steps": {"from": 10, "to": 40}}}


def family(*entries: Any) -> TaskFamily:
    return TaskFamily(experiment_of({"name": "many", "method": {"name": "widths"}, "tasks": {"entries": [*entries]}}))


def mean_over_u(n: int, q: list[float], value: list[float]) -> float:
    """The integral over u in [0, 1) of (1 / n) sum of the values of the entries at u: exact, u between its jumps."""
    ends = [math.fsum(q[: e + 1]) * n for e in range(len(q))]
    jumps = sorted({0.0, 1.0, *(end - math.floor(end) for end in ends)})
    pieces = [(b - a, entries_at((a + b) / 2, n, q)) for a, b in pairwise(jumps) if b - a > 1e-12]
    return math.fsum(length * math.fsum(value[e] for e in entries) / n for length, entries in pieces)


@given(
    st.lists(st.floats(0.05, 1.0), min_size=1, max_size=5),
    st.lists(st.floats(0.1, 100.0), min_size=5, max_size=5),
    st.integers(1, 7),
)
def test_weighed_back_the_mean_over_all_draws_is_that_by_weight(weights: list[float], costs: Any, n: int) -> None:
    p = [w / math.fsum(weights) for w in weights]
    q = cheaper(p, costs[: len(p)])
    value = [math.sin(3 * e + 1) for e in range(len(p))]
    weighed = [p_e / q_e * v for p_e, q_e, v in zip(p, q, value, strict=True)]
    wanted = math.fsum(p_e * v for p_e, v in zip(p, value, strict=True))
    assert mean_over_u(n, q, weighed) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_an_entry_is_drawn_n_q_times_rounded_up_or_down() -> None:
    q = [0.55, 0.25, 0.2]
    for u in (0.0, 0.3, 0.7, 0.999):
        drawn = entries_at(u, 8, q)
        assert all(math.floor(8 * q[e]) <= drawn.count(e) <= math.ceil(8 * q[e]) for e in range(3))
        assert drawn == sorted(drawn)


def test_tasks_have_the_weights_of_their_entries_and_are_a_function_of_the_seed() -> None:
    of = family(SMALL, LARGE)
    assert shares(of) == pytest.approx([2 / 3, 1 / 3])
    costs = mean_costs(few_of_each(of, 0))
    q = cheaper(shares(of), costs)
    assert costs[0] < costs[1] and q[0] > 2 / 3
    drawn = drawn_tasks(of, 7, 6, q)
    assert drawn == drawn_tasks(of, 7, 6, q) and len(drawn) == 6
    by_name = {"small": 2 / 3 / q[0], "large": 1 / 3 / q[1]}
    assert all(w.weight == pytest.approx(by_name[w.task.name]) for w in drawn)
    assert all(w.weight == 1.0 for w in drawn_tasks(of, 7, 6))


def test_an_entry_that_draws_nothing_is_one_task() -> None:
    of = family(SMALL, DRAWN)
    assert [len(tasks) for tasks in few_of_each(of, 0)] == [1, EXAMPLES]
    drawn = drawn_tasks(of, 3, 9)
    assert [task.name for task in distinct(drawn)].count("small") == 1 < [w.task.name for w in drawn].count("small")
    assert len(distinct(drawn)) == 1 + len({w.task.problem for w in drawn if w.task.name == "drawn"})


def test_the_cost_is_the_steps_times_the_products_of_a_batch() -> None:
    (task,) = family(
        {"name": "one", "set": {"task.model": "mlp", "task.width": 5, "task.steps": 7, "task.batch": 11}}
    ).each()
    inputs, hidden, classes = 64, 5, 10
    assert task.cost == 7 * 11 * (inputs * hidden + hidden * hidden * 2 + hidden * classes)
