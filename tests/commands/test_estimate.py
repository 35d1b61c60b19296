"""The plan that is said before long work: counts of runs by purpose, and a time from a measured run."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest

from metasched.commands import estimate
from metasched.commands.estimate import announce, runs_of_compare, runs_of_train, runs_of_tune, timed_arm
from metasched.config.schema import Experiment
from metasched.evaluation.config import CompareConfig
from metasched.evaluation.contenders import joined
from metasched.evaluation.references import given_arms
from metasched.meta.config import MetaConfig
from metasched.methods.config import MethodConfig
from metasched.runs.pool import Pool
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.table import schedules_of
from metasched.tasks.config import TaskConfig
from metasched.tracking.console import open_console

EXPERIMENT = Experiment(
    task=TaskConfig(model="mlp", width=3, steps=6, batch=16, train=64, validation=32, test=32),
    method=MethodConfig(name="ana"),
    meta=MetaConfig(steps=10, runs=2, select_runs=3, confirm_runs=4, tune_lr=5),
    compare=CompareConfig(seeds=4, horizons=(1, 3), tune_floors=11, baselines=("ana_static",)),
    schedule=ScheduleConfig(start="best"),
)


def test_runs_are_counted_by_purpose() -> None:
    candidates = len(schedules_of(EXPERIMENT.method))  # and no floor: noise of no width is its end
    assert runs_of_train(EXPERIMENT, 5) == {
        "choose the start": candidates * 3,
        "tune the learning rate": 5,
        "search": 0,
        "learn": 10 * 2 * 4.5,
        "confirm": 8,
        "tune floors": 3 * 5 * 2,  # 11 runs are 2 for each of five rates
        "compare": 5 * 4 * (1 + 3),
    }
    es = replace(EXPERIMENT, meta=replace(EXPERIMENT.meta, estimator="es"), schedule=ScheduleConfig(start="floor"))
    found = runs_of_train(es, 5)
    assert found["learn"] == 40 and found["choose the start"] == 0
    guided = replace(es, meta=replace(es.meta, estimator="guided"), compare=CompareConfig(tune_floors="as_learned"))
    found = runs_of_train(guided, 5)
    spent = 5 + 10 * (2 * 2 + 1) + 8  # runs to tune the rate, to learn and to confirm, which each floor gets as well
    assert found["tune floors"] == 3 * 5 * round(spent / 5) and found["learn"] == 10 * (2 * 2 + 4.5)
    mixed = replace(es, meta=replace(es.meta, estimator="mixed"))
    assert runs_of_train(mixed, 5)["learn"] == 10 * (2 * 2 + 2 * 4.5)
    assert runs_of_compare(EXPERIMENT, 2, 0) == {"tune floors": 0, "compare": 32}
    assert runs_of_tune(es, 2)["search"] == es.tune.inner_steps / 6


def test_the_time_is_that_of_a_run_times_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 9.0, 9.0, 10.0, 10.0, 12.0])  # warm-up 9 s; 1 step 1 s; 6 steps 2 s: 0.2 s a step
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(times))
    arms = joined(*given_arms(EXPERIMENT.problem, ["ana_static"]))
    stream = io.StringIO()
    with Pool(1) as pool:
        announce({"compare": 30.0, "search": 0.0}, timed_arm(EXPERIMENT, arms), pool, open_console(stream))
    assert stream.getvalue() == (
        "plan: the work of 30 training runs of 6 steps, about 1:00 on one process: 30 to compare\n"
    )


def test_a_run_is_measured() -> None:
    arms = joined(*given_arms(EXPERIMENT.problem, ["ana_static"]))
    assert timed_arm(EXPERIMENT, arms).problem.method.name == "ana"
    stream = io.StringIO()
    with Pool(1) as pool:
        announce({"compare": 1e6}, timed_arm(EXPERIMENT, arms), pool, open_console(stream))
    assert re.search(r"about [1-9][\d:]* ", stream.getvalue())
