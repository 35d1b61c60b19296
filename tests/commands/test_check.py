"""The gate as a command: what ``metasched check`` accepts, says and refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from metasched.commands import check as gate
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.engines import UNROLLS
from metasched.engines.base import ControlGradient, control_gradient
from metasched.meta.config import MetaConfig
from metasched.methods.config import MethodConfig
from metasched.schedules.config import ScheduleConfig
from metasched.tasks.config import TaskConfig
from metasched.tracking.console import open_console
from metasched.training.optimizers.config import OptimizerConfig


@pytest.fixture(autouse=True)
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "POINTS", 3)
    monkeypatch.setattr(gate, "_PAIRS", 2)


def experiment(objective: str, relaxation: float = 0.3) -> Experiment:
    return Experiment(
        task=TaskConfig(model="mlp", width=4, train=64, validation=32),
        optimizer=OptimizerConfig(name="adam", lr=0.05, eps=1e-3),
        method=MethodConfig(name="joint", forward="expectation", noise="normal"),
        meta=MetaConfig(estimator="higher", objective=objective, relaxation=relaxation),  # type: ignore[arg-type]
    )


def run(experiment: Experiment) -> tuple[dict[str, Any], str]:
    stream = io.StringIO()
    result = gate.check(experiment, open_console(stream))
    return json.loads(json.dumps(result)), stream.getvalue()


@pytest.mark.parametrize(
    ("objective", "held_against", "bound"),
    [("relaxed", "finite differences", 1e-6), ("hardened", "agreement", 1e-10)],
)
def test_says_what_each_control_was_held_against(objective, held_against, bound):
    result, shown = run(experiment(objective))
    assert result["method"] == "joint" and result["passed"] is True and result["seconds"] > 0
    assert list(result["controls"]) == ["weight_noise", "activation_noise", "noise_mean", "freeze_fraction"]
    for name, found in result["controls"].items():
        assert found["gate"] == held_against and found["points"] == 3 and found["passed"] is True
        assert 0 <= found["error"] <= bound
        assert found["cosine"] is None if objective == "relaxed" else -1 <= found["cosine"] <= 1
        assert name in shown
    assert ("the exact estimators must agree" in shown) == (objective == "hardened")


@pytest.mark.parametrize("method", ["ana", "inq", "joint"])
@pytest.mark.parametrize("estimator", UNROLLS)
def test_defaults_of_every_method_pass(method, estimator):
    hard = replace(
        experiment("hardened"),
        method=MethodConfig(name=method),
        meta=MetaConfig(estimator=estimator),
    )
    assert {found["gate"] for found in run(hard)[0]["controls"].values()} == {"agreement"}


def test_looks_at_learned_controls_only():
    frozen_hard = replace(experiment("relaxed", relaxation=0.0), schedule=ScheduleConfig(learn=("weight_noise",)))
    assert list(run(frozen_hard)[0]["controls"]) == ["weight_noise"]


def test_finds_nothing_to_check_in_a_method_without_controls():
    assert run(replace(experiment("hardened"), method=MethodConfig(name="ste")))[0]["controls"] == {}


def planted(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., ControlGradient]:
    """``control_gradient`` with one control's derivative by ``higher`` changed."""

    def wrong(unroll: Any, *arguments: Any) -> ControlGradient:
        found = control_gradient(unroll, *arguments)
        if unroll.__module__.endswith("higher_unroll"):
            found = found._replace(wrt={**found.wrt, "noise_mean": change(found.wrt["noise_mean"])})
        return found

    return wrong


@pytest.mark.parametrize("objective", ["relaxed", "hardened"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda g: -g, r"relative error of 2\.0e\+00"),
        (lambda g: g * (1 + 1e-4), r"relative error of 1\.0e-04"),
        (lambda g: torch.cat([torch.zeros_like(g[:1]), g[1:]]), "relative error of"),
        (lambda g: g * float("nan"), "relative error of inf"),
        (torch.zeros_like, r"relative error of 1\.0e\+00"),
    ],
    ids=["sign", "scale", "a step is missing", "nan", "zero"],
)
def test_refuses_a_wrong_hypergradient(monkeypatch, objective, change, expected):
    monkeypatch.setattr(gate, "control_gradient", planted(change))
    with pytest.raises(MetaschedError, match=expected) as caught:
        run(experiment(objective))
    assert caught.value.path == "check: noise_mean"


@pytest.mark.parametrize("objective", ["relaxed", "hardened"])
def test_refuses_a_hypergradient_that_is_zero(objective):
    with pytest.raises(MetaschedError, match=r"freeze_fraction: .* zero at every point; set meta\.relaxation above 0"):
        run(experiment(objective, relaxation=0.0))


def test_refuses_what_finite_differences_cannot_see(monkeypatch):
    monkeypatch.setattr(gate, "error_against_differences", lambda *_: None)
    with pytest.raises(MetaschedError, match="only 0 of 3 points were smooth enough"):
        run(experiment("relaxed"))


def test_small_keeps_the_experiment_and_its_smaller_sizes():
    start = experiment("hardened")
    small = gate.small(replace(start, task=replace(start.task, train=10, batch=64, steps=500)).problem)
    assert (small.task.steps, small.task.train, small.task.validation, small.task.batch) == (3, 10, 32, 10)
    assert small.dtype == "float64" and (small.method, small.optimizer) == (start.method, start.optimizer)
    assert gate.small(Experiment().problem).task.train == 256
    quadratic = gate.small(Experiment(task=TaskConfig(name="quadratic", width=300)).problem)
    assert quadratic.task.train is None and quadratic.task.batch == 64
