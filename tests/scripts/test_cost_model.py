"""The cost model's formulas and its numbers of runs, against numbers by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from loading import loaded

from metasched.config.load import experiment_of

PATH = Path(__file__).parents[2] / "scripts" / "cost_model.py"


@pytest.fixture(scope="module")
def model() -> Any:
    return loaded(PATH)


def test_seconds_of_a_command_are_those_of_its_parts(model: Any) -> None:
    methods = {"ste": 1.0, "learned": 2.0}
    costs = model.Costs(1.0, 0.25, 0.5, evaluation=0.1, run=10.0, hypergradient=4.0, start=7.0, methods=methods)
    sizes = model.Sizes(layers=3, macs=8.0, numbers=4.0, batch=2)  # an example: 8/4 + 4/2 = 4 seconds
    assert model.step_seconds(costs, sizes, "ste") == 3 + 4 * 2
    assert model.step_seconds(costs, sizes, "learned") == 22
    played = model.Phase("pairs", "learned", runs=2, steps=5, examples=100)
    assert model.run_seconds(costs, sizes, played) == pytest.approx(5 * 22 + 0.1 * 4 * 100 + 30)
    differentiated = model.Phase("hypergradients", "learned", 1, 5, 0, differentiated=True)
    assert model.run_seconds(costs, sizes, differentiated) == 4 * 5 * 22
    assert model.total_seconds(costs, sizes, [played, differentiated]) == pytest.approx(7 + 2 * 180 + 440)


def test_runs_are_counted_as_the_command_does_them(model: Any) -> None:
    document = {
        "task": {"name": "digits", "steps": 30},
        "method": {"name": "ste"},
        "meta": {"estimator": "guided", "steps": 15, "runs": 6},
        "schedule": {"start": "floor"},
        "compare": {"seeds": 16, "horizons": [1, 3], "baselines": [], "tune_floors": "as_learned"},
    }
    found = model.phases_of(experiment_of(document), calibrated=1000, validation=200, test=300)
    runs = {(p.name, p.method, p.steps): 0 for p in found}
    for p in found:
        runs[p.name, p.method, p.steps] += p.runs
    # 15 steps of 1 hypergradient and 6 pairs; 8 runs each of what was learned and of its start; 15 + 180 + 16 = 211
    # runs were spent, so each of five rates of a floor is tried for 42
    assert runs[("hypergradients", "learned", 30)] == 15
    assert runs[("pairs", "learned", 30)] == 180
    assert runs[("confirm", "learned", 30)] == 16
    assert all(runs["floors", arm, 30] == 210 for arm in ("ste", "lsq", "float"))
    assert all(runs["compare", arm, steps] == 16 for arm in ("ste", "lsq", "float") for steps in (30, 90))
    assert runs[("compare", "learned", 90)] == 32
    assert {p.name: p.examples for p in found} == {
        "hypergradients": 0,
        "pairs": 200,
        "confirm": 1200,
        "floors": 1200,
        "compare": 1300,
    }


def test_workers_wait_for_the_hypergradient_of_guided(model: Any) -> None:
    assert model.learning_speedup(6, 1, 4.0, guided=True) == 1
    assert model.learning_speedup(6, 12, 4.0, guided=False) == 12
    assert model.learning_speedup(6, 12, 4.0, guided=True) == 16 / 5
    assert model.learning_speedup(10, 2, 4.0, guided=True) == (8 + 20) / (4 + 10)
