"""What the two floors and the ceiling train."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from metasched.config.load import experiment_of
from metasched.config.schema import Experiment
from metasched.evaluation.compare import compare, plan_of
from metasched.evaluation.config import CompareConfig
from metasched.evaluation.contenders import fresh_seeds, joined
from metasched.evaluation.references import given_arms, reference_arms, with_optimizer
from metasched.methods.config import MethodConfig
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.tasks.config import TaskConfig
from metasched.tasks.data import DataTask
from metasched.tasks.live import register_live
from metasched.tracking.console import open_console
from metasched.tracking.tracker import Memory
from metasched.training.loop import hardened_score, train
from metasched.training.optimizers.adam import Adam
from metasched.training.optimizers.config import GroupConfig, OptimizerConfig
from metasched.training.problem import build_problem

EXPERIMENT = Experiment(
    task=TaskConfig(model="mlp", width=3, steps=4, batch=16, train=64, validation=16, test=32),
    method=MethodConfig(name="inq"),
    compare=CompareConfig(seeds=2, baselines=()),
    run=RunConfig(workers=1),
)


def methods(method: MethodConfig, **sections: Any) -> dict[str, MethodConfig]:
    problem = replace(EXPERIMENT, method=method, **sections).problem
    return {name: arm.problem.method for name, arm in reference_arms(problem)}


def test_ste_has_the_scales_of_the_experiment_and_lsq_learns_them() -> None:
    assert methods(MethodConfig(name="inq", levels="int3", scale="max", activation_scale=0.5)) == {
        "ste": MethodConfig(name="ste", levels="int3", scale="max", activation_scale=0.5),
        "lsq": MethodConfig(
            name="ste", levels="int3", scale="learned", granularity="channel", activation_scale="learned"
        ),
        "float": MethodConfig(name="float"),
    }


@pytest.mark.parametrize("name", ["ste", "widths"])
def test_where_the_experiment_learns_scales_ste_has_those_that_they_start_from(name: str) -> None:
    learned = MethodConfig(name=name, scale="learned", granularity="tensor", activation_scale="learned")
    found = methods(learned)
    assert found["ste"] == MethodConfig(name="ste", scale="least_squares", granularity="tensor", activation_scale=1.0)
    assert found["lsq"] == MethodConfig(name="ste", scale="learned", granularity="channel", activation_scale="learned")
    half = methods(replace(learned, scale="max"))["ste"]
    assert (half.scale, half.activation_scale) == ("max", 1.0)


def test_float_activations_have_no_scale() -> None:
    found = methods(MethodConfig(name="inq", activation_levels=None))
    assert (found["lsq"].scale, found["lsq"].activation_scale) == ("learned", 1.0)


def test_a_rule_for_learned_scales_counts_where_there_are_some() -> None:
    rules = (GroupConfig(match="scale", lr_factor=0.1), GroupConfig(match="bias", lr_factor=2.0))
    experiment = replace(EXPERIMENT, optimizer=OptimizerConfig(lr=0.02, groups=rules))
    arms = dict(reference_arms(experiment.problem))
    kept = {name: [group.match for group in arm.problem.optimizer.groups] for name, arm in arms.items()}
    assert kept == {"ste": ["bias"], "lsq": ["scale", "bias"], "float": ["bias"]}
    for arm in arms.values():
        build_problem(arm.problem)  # which refuses a rule without a member


class Routed(nn.Module):
    """A network whose second activation does not run in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.r, self.b, self.s, self.c = (
            nn.Linear(2, 4),
            nn.ReLU(),
            nn.Linear(4, 4),
            nn.ReLU(),
            nn.Linear(4, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.r(self.a(x))
        return self.c(x if self.training else self.s(self.b(x)))


def of_data(model: type[nn.Module], optimizer: OptimizerConfig | None = None) -> Experiment:
    x, y = torch.rand(60, 2), torch.rand(60, 1)
    train, validation, test = (TensorDataset(x[i::3], y[i::3]) for i in range(3))
    task = DataTask(
        model=model, train=train, validation=validation, test=test, loss=F.mse_loss, batch_size=5, optimizer=optimizer
    )
    document = {"task": {"factory": register_live(task), "steps": 5}, "method": {"name": "inq"}}
    return experiment_of(document | {"run": {"workers": 1, "dtype": "float64"}})


def test_lsq_keeps_the_activations_of_ste_where_a_batch_does_not_reach_them() -> None:
    found = dict(reference_arms(of_data(Routed).problem))["lsq"].problem.method
    assert (found.scale, found.activation_scale) == ("learned", 1.0)


def test_lsq_is_ste_with_learned_scales() -> None:
    arms = joined(*reference_arms(EXPERIMENT.problem))
    with Pool(1) as pool:
        found = compare(plan_of(EXPERIMENT), arms, [], pool, Memory(), open_console(sys.stdout)).at(4)
    lsq = MethodConfig(name="ste", scale="learned", granularity="channel", activation_scale="learned")
    problem = build_problem(replace(EXPERIMENT, method=lsq).problem)
    seeds = fresh_seeds(EXPERIMENT.seed, 2)
    trained = [train(problem.with_seed(seed), {}).state for seed in seeds]
    assert found["lsq"].scores == tuple(
        hardened_score(problem.with_seed(seed), state, "test") for seed, state in zip(seeds, trained, strict=True)
    )
    assert found["lsq"].scores != found["ste"].scores


def test_floors_that_are_named_as_baselines_are_there_once() -> None:
    learned = replace(EXPERIMENT, method=MethodConfig(name="ste", scale="learned"))
    assert [*joined(*given_arms(learned.problem, None))] == ["ste", "lsq", "float"]
    named = given_arms(EXPERIMENT.problem, ["inq_linear", "ste", "float"])
    assert [*joined(*named)] == ["ste", "lsq", "float", "inq_linear"]


def test_an_optimizer_at_its_defaults_is_not_taken_for_the_tasks_own() -> None:
    experiment = of_data(Routed, OptimizerConfig(name="sgd", lr=1e-3))
    problem = build_problem(with_optimizer(experiment.problem, OptimizerConfig()))
    assert isinstance(problem.optimizer, Adam) and problem.hyper_at(0)["lr"] == pytest.approx(0.01, rel=1e-12)
