"""The mapped sweep against the sweep of each run: the same hypergradients for every method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched.commands.check import random_controls
from metasched.engines import find_unroll
from metasched.engines.base import Controls, Objective, OuterLoss, control_gradient
from metasched.engines.stacked import control_gradients_mapped
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.models import build_model
from metasched.network.quantize import quantize
from metasched.runs import local as questions
from metasched.runs.local import LocalRuns, Run
from metasched.tasks.classification import accuracy
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem

SEEDS = [3, 2**63 - 1, 8]
STEPS = 5
METHODS = {
    "ana_expectation": MethodConfig(name="ana", forward="expectation", noise="uniform"),
    "ana_mode": MethodConfig(name="ana", forward="mode", noise="triangular", activation_levels="uint2"),
    "ana_random": MethodConfig(name="ana", forward="random", noise="normal", scale="max", granularity="channel"),
    "ana_fixed": MethodConfig(name="ana", forward="mode", noise="logistic", backward="fixed", activation_scale=0.25),
    "inq": MethodConfig(name="inq", levels="pow2_5", scale="pow2", activation_levels=None),
    "inq_relaxation": MethodConfig(name="inq", partition="relaxation"),
    "joint": MethodConfig(name="joint", forward="random"),
    "gxnor": MethodConfig(name="gxnor"),
    "metropolis": MethodConfig(name="metropolis", levels="states3", scale="max", granularity="channel"),
}
SGD = OptimizerConfig(name="sgd", lr=0.05, weight_decay=1e-2)
ADAM = OptimizerConfig(name="adam", lr=0.02, weight_decay=1e-2, eps=1e-3)


def problem(
    method: MethodConfig, model: str = "mlp", optimizer: OptimizerConfig = ADAM, dropout: bool = False
) -> InnerProblem:
    draws = torch.Generator().manual_seed(5)
    shape = (1, 8, 8)
    x, y = torch.randn(48, *shape, generator=draws), torch.randint(10, (48,), generator=draws)

    def build() -> nn.Module:
        made = build_model(model, shape, 10, 8).to(x.dtype)  # type: ignore[arg-type]
        return nn.Sequential(made, nn.Dropout(0.3)) if dropout else made

    held_out = Split(x[32:], y[32:])
    task = SupervisedTask(
        "random", Split(x[:32], y[:32]), held_out, held_out, build, F.cross_entropy, accuracy, batch_size=16
    )
    rule, hyper = recipe(optimizer)
    torch.manual_seed(0)
    network = quantize(build(), build_method(method).relaxed(0.3), x[:2])
    return InnerProblem(network, task, rule, hyper, STEPS, seed=0)


def controls_of(inner: InnerProblem, run: int) -> Controls:
    return random_controls(inner.network.method.controls, inner.steps, len(inner.network.layers), 0, run)


def one_by_one(inner: InnerProblem, runs: Sequence[Run], outer: OuterLoss) -> list[Any]:
    sweep = find_unroll("sweep")
    return [control_gradient(sweep, inner.with_seed(run.seed), run.controls, outer) for run in runs]


def check_equal(inner: InnerProblem, outer: OuterLoss, memory: int | None = None) -> None:
    runs = [Run(controls_of(inner, i), seed) for i, seed in enumerate(SEEDS)]
    found = control_gradients_mapped(inner, [r.controls for r in runs], SEEDS, outer, memory)
    expected = one_by_one(inner, runs, outer)
    slopes = [slope for e in expected for slope in e.wrt.values()]
    assert all(slope.any() for slope in slopes[-1:]), "a derivative that is 0 everywhere would prove nothing"
    for f, e in zip(found, expected, strict=True):
        assert (
            (f.nonfinite, f.dead_layers, f.faults) == (e.nonfinite, e.dead_layers, e.faults) == (0, e.dead_layers, ())
        )
        assert f.loss == pytest.approx(e.loss, rel=1e-12) and f.score == e.score
        for name, slope in e.wrt.items():
            assert f.wrt[name].shape == slope.shape
            assert (f.wrt[name] - slope).norm() <= 1e-10 * (slope.norm() + 1e-12), name


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_hypergradients_of_the_loop(method: str) -> None:
    check_equal(problem(METHODS[method]), OuterLoss())


@pytest.mark.parametrize("objective", ["relaxed", "trajectory"])
def test_every_objective_has_the_hypergradients_of_the_loop(objective: Objective) -> None:
    check_equal(problem(METHODS["joint"], optimizer=SGD), OuterLoss(objective))


def test_convolutions_and_a_memory_budget() -> None:
    check_equal(problem(METHODS["ana_expectation"], "convnet"), OuterLoss(), memory=2**30)


def test_hyper_parameters_that_are_tensors_are_shared() -> None:
    inner = problem(METHODS["ana_expectation"])
    rates = torch.linspace(0.02, 0.01, STEPS)
    check_equal(replace(inner, hyper={**inner.hyper, "lr": rates}), OuterLoss())


def test_a_run_that_breaks_leaves_the_others_alone_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "gradient_mapping_pays", lambda problem, runs: True)
    inner = problem(METHODS["ana_expectation"])
    runs = [Run(dict(controls_of(inner, i)), seed) for i, seed in enumerate(SEEDS)]
    runs[1].controls["noise_mean"][2, 1] = math.nan
    local = LocalRuns(inner, inner, OuterLoss(), lambda *_: pytest.fail("mapped"), sweeps=True)
    first, broken, last = local.gradients(runs)
    whole = one_by_one(inner, [runs[0], runs[2]], OuterLoss())
    for found, expected in zip((first, last), whole, strict=True):
        assert found.nonfinite == 0 and not found.faults and found.loss == pytest.approx(expected.loss, rel=1e-12)
        assert torch.allclose(found.wrt["weight_noise"], expected.wrt["weight_noise"], rtol=1e-10, atol=1e-14)
    (fault,) = broken.faults
    assert math.isnan(broken.loss) and (fault.place, fault.step) == ("linear2", 2)


def test_what_cannot_be_mapped_is_done_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "gradient_mapping_pays", lambda problem, runs: True)
    inner = problem(METHODS["ana_expectation"], dropout=True)
    runs = [Run(controls_of(inner, i), seed) for i, seed in enumerate(SEEDS)]
    found = LocalRuns(inner, inner, OuterLoss(), find_unroll("sweep"), sweeps=True).gradients(runs)
    expected = one_by_one(inner, runs, OuterLoss())
    assert all(torch.equal(f.wrt["weight_noise"], e.wrt["weight_noise"]) for f, e in zip(found, expected, strict=True))


def test_on_a_cpu_hypergradients_are_not_mapped() -> None:
    inner = problem(METHODS["ana_expectation"])
    assert not questions.gradient_mapping_pays(inner, 64)
