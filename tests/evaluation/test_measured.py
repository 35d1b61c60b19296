"""Hestia's schedule with its factor for each layer from the Hessian: the formula, and as an arm of a comparison."""

from __future__ import annotations

import io
import math
import pickle
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from metasched import MetaschedError
from metasched.config.schema import Experiment
from metasched.core.layer import Layer
from metasched.evaluation.compare import compare, plan_of
from metasched.evaluation.config import CompareConfig
from metasched.evaluation.contenders import described_arm, hand_coded_arms, joined, named_schedule
from metasched.evaluation.measured import MEASURED, measured_schedule
from metasched.methods.config import MethodConfig
from metasched.runs.cells import played
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded
from metasched.schedules.tempering import hestia_hessian, sensitivity_factors
from metasched.tasks.config import TaskConfig
from metasched.tracking.console import open_console
from metasched.tracking.tracker import Memory
from metasched.training.curvature import initial_traces
from metasched.training.problem import build_problem

NAME = "temperature_hestia_hessian"
EXPERIMENT = Experiment(
    task=TaskConfig(model="mlp", width=4, steps=4, batch=16, train=64, validation=16, test=32),
    method=MethodConfig(name="temperature", scale="least_squares"),
    compare=CompareConfig(seeds=2, baselines=(NAME,)),
    run=RunConfig(workers=1, dtype="float64"),
)
WIDTHS = replace(EXPERIMENT, method=MethodConfig(name="widths", scale="least_squares"))


def test_the_factor_is_that_of_the_authors_code() -> None:
    """calibrator.py: the population standard deviation, and 1e-8 both as the smallest trace and beside it."""
    traces = [0.3, 20.0, 4.0, -1.0]
    logs = [math.log(x) for x in (0.3, 20.0, 4.0, 1e-8)]
    mean, deviation = statistics.mean(logs), statistics.pstdev(logs)
    z = [(x - mean) / (deviation + 1e-8) for x in logs]
    expected = [math.exp(-0.7 / (1 + math.exp(-2 * score))) for score in z]
    assert sensitivity_factors(traces, alpha=0.7, kappa=2.0) == pytest.approx(expected, rel=1e-12)
    assert sensitivity_factors([5.0, 5.0]) == pytest.approx([math.exp(-0.2)] * 2)  # z = 0
    cold, warm = sensitivity_factors([9.0, 1.0])
    assert math.exp(-0.4) < cold < warm < 1


def layers(number: int) -> list[Layer]:
    return [Layer(f"l{i}", i / max(1, number - 1), "linear", "weight+activation", 4, 16, 1.585) for i in range(number)]


def test_it_is_hestia_with_colder_sensitive_layers() -> None:
    progress, plain = progress_of_steps(11), hand_coded("temperature")["temperature_hestia"]
    schedule = pickle.loads(pickle.dumps(hestia_hessian([1.0, 10.0, 100.0])))
    found, base = schedule(progress, layers(3)), plain(progress, layers(3))
    factors = torch.tensor(sensitivity_factors([1.0, 10.0, 100.0]), dtype=torch.float64)
    assert torch.equal(found["weight_temperature"], base["weight_temperature"] * factors)
    assert all(torch.equal(found[name], base[name]) for name in ("weight_blend", "activation_temperature"))
    assert found["weight_temperature"][-1].tolist() == [0.0] * 3
    with pytest.raises(MetaschedError, match="was measured for 3 layers, and this network has 2"):
        schedule(progress, layers(2))


def test_it_is_measured_in_the_initial_network_of_the_arm() -> None:
    schedule = measured_schedule(EXPERIMENT.problem, NAME)
    traces = initial_traces(build_problem(EXPERIMENT.problem))
    first = played(EXPERIMENT.problem, schedule, 5)["weight_temperature"][0]
    assert first.tolist() == pytest.approx([0.351 * f for f in sensitivity_factors(list(traces.values()))])
    assert len(set(first.tolist())) == len(traces) > 1
    assert measured_schedule(EXPERIMENT.problem, NAME) is schedule  # equal arms of one name are merged
    assert set(MEASURED).isdisjoint(hand_coded("temperature"))


@pytest.mark.parametrize("experiment", [EXPERIMENT, WIDTHS], ids=["temperature", "widths"])
def test_a_comparison_names_and_plays_it(experiment: Experiment) -> None:
    described = described_arm(experiment, [NAME, NAME])
    arms = joined(described, *hand_coded_arms(experiment.problem, (NAME,)))
    assert list(arms) == [NAME] and arms[NAME].problem.method == EXPERIMENT.method
    with Pool(1) as pool:
        found = compare(plan_of(experiment), arms, [NAME], pool, Memory(), open_console(io.StringIO()))
    assert all(math.isfinite(s) for s in found.arms[0].scores) and len(found.arms[0].scores) == 2


def test_who_plays_temperature_meets_it_without_naming_it_and_others_by_its_name_only() -> None:
    assert NAME in dict(hand_coded_arms(EXPERIMENT.problem, None))
    assert NAME not in dict(hand_coded_arms(WIDTHS.problem, None))
    assert named_schedule(EXPERIMENT.problem, NAME, "schedule.start") is measured_schedule(EXPERIMENT.problem, NAME)
    with pytest.raises(MetaschedError, match=f"did you mean '{NAME}'"):
        named_schedule(EXPERIMENT.problem, NAME + "s", "schedule.start")
    wrong: Any = (NAME + "s",)
    with pytest.raises(MetaschedError, match=NAME):
        hand_coded_arms(WIDTHS.problem, wrong)
