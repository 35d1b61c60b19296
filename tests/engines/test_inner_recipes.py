"""Hypergradients through clipping, parameter groups, warm-up and Nesterov's momentum: engines and central differences.

The rules alone are in test_gate.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from metasched.commands.check import random_controls
from metasched.config.schema import Experiment
from metasched.contrib.data_parallel import Alone, train_in_parts
from metasched.engines import UNROLLS, find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.finite_differences import TOLERANCE, error_against_differences, outer_loss, uphill
from metasched.engines.tangent import slope_along
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors
from metasched.runs.config import RunConfig
from metasched.tasks.config import TaskConfig
from metasched.training.loop import train
from metasched.training.optimizers.config import GroupConfig, OptimizerConfig
from metasched.training.problem import build_problem
from metasched.training.stacked import of_run, train_mapped
from metasched.training.state import InnerProblem

STEPS = 4
OUTER = OuterLoss("relaxed")
GROUPS = (
    GroupConfig(match="norm", weight_decay=0.0),
    GroupConfig(match="*.bias", weight_decay=0.0, lr_factor=2.0),
    GroupConfig(match="linear2.*", lr_factor=0.5),
)
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": dict(
        name="sgd", lr=0.1, nesterov=True, weight_decay=0.01, clip_norm=0.3, groups=GROUPS, warmup=0.5, decay="cosine"
    ),
    "adam": dict(lr=0.05, betas=(0.8, 0.95), eps=1e-2, weight_decay=0.01, clip_value=0.02, decay="one_cycle"),
    "adamw": dict(
        name="adamw", lr=0.05, betas=(0.8, 0.95), eps=1e-2, weight_decay=0.1, clip_norm=0.3, groups=GROUPS[::-1]
    ),
}


@cache
def problem(name: str, method: str = "ana") -> InnerProblem:
    methods = {
        "ana": MethodConfig(name="ana", noise="normal", forward="expectation"),
        "joint": MethodConfig(name="joint", noise="logistic", forward="mode"),
    }
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=3, train=64, validation=32, batch=16, steps=STEPS),
        method=methods[method],
        optimizer=OptimizerConfig(**RECIPES[name]),
        run=RunConfig(dtype="float64"),
    )
    return build_problem(experiment.problem, relaxation=0.3)


def controls_of(problem: InnerProblem, index: int = 0) -> Tensors:
    return random_controls(problem.network.method.controls, STEPS, len(problem.network.layers), 0, index)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("method", ["ana", "joint"])
def test_engines_agree(method: str, name: str) -> None:
    here = problem(name, method)
    ours, *others = (control_gradient(find_unroll(e), here, controls_of(here), OUTER) for e in UNROLLS)
    for other in others:
        assert other.loss == pytest.approx(ours.loss, rel=1e-12)
        for control, slope in ours.wrt.items():
            assert slope.norm() > 0
            torch.testing.assert_close(other.wrt[control], slope, rtol=1e-9, atol=1e-9 * float(slope.norm()))
    forward = slope_along(here, controls_of(here), ours.wrt, OUTER)
    assert forward.slope == pytest.approx(sum(float((s * s).sum()) for s in ours.wrt.values()), rel=1e-9)


CASES = [(recipe, name) for recipe in RECIPES for name in problem(recipe).hyper]


@pytest.mark.parametrize(("recipe", "name"), CASES)
def test_hyper_parameters_against_central_differences(recipe: str, name: str) -> None:
    """[T] tensors, moved together in a random direction; where the two differ, one of them is at a kink."""
    passed = 0
    for index in range(6):
        here = problem(recipe).with_seed(index)
        controls, value = controls_of(here, index), here.hyper[name]
        values = torch.tensor(value) if isinstance(value, tuple) else torch.full((STEPS,), float(value))  # type: ignore[arg-type]
        slopes = []
        for engine in UNROLLS:
            leaf = values.clone().requires_grad_()
            moved = replace(here, hyper={**here.hyper, name: leaf})
            slopes.extend(torch.autograd.grad(find_unroll(engine)(moved, controls, OUTER).loss, leaf))
        direction = uphill(slopes[0][:, None], 0, 1, index)[:, 0]
        along = cache(
            lambda h, p=here, c=controls, v=values, d=direction: outer_loss(
                replace(p, hyper={**p.hyper, name: v + h * d}), c, OUTER
            )
        )
        errors = [error_against_differences(along, float((slope * direction).sum())) for slope in slopes]
        if None in errors:
            assert errors == [None] * len(UNROLLS)
            continue
        assert bool(slopes[0].any())
        assert max(e for e in errors if e is not None) <= TOLERANCE, (index, errors)
        passed += 1
    assert passed >= 4


@pytest.mark.parametrize("name", RECIPES)
def test_mapped_runs_and_parts_of_a_batch_are_the_loop(name: str) -> None:
    here = problem(name, "joint")
    seeds = [3, 1, 4, 1]
    controls = [controls_of(here, i) for i in range(len(seeds))]
    stacked = {control: torch.stack([c[control] for c in controls]) for control in controls[0]}
    end = train_mapped(here, stacked, seeds)
    for i, (seed, own) in enumerate(zip(seeds, controls, strict=True)):
        alone = train(here.with_seed(seed), own).state
        for ours, theirs in zip(of_run(end, i), alone, strict=True):
            for key, t in theirs.items():
                torch.testing.assert_close(ours[key], t, rtol=1e-10, atol=1e-12)
    whole, once = train(here, controls[0]).state, train_in_parts(here, controls[0], Alone(1)).state
    assert all(torch.equal(once.params[key], p) for key, p in whole.params.items())


@pytest.mark.parametrize("name", RECIPES)
def test_clipping_is_at_work_in_these_recipes(name: str) -> None:
    """Otherwise the tests above would say nothing of it."""
    here, threshold = problem(name), "clip_value" if name == "adam" else "clip_norm"
    free = replace(here, hyper={**here.hyper, threshold: 1e9})
    clipped, plain = (train(p, controls_of(p)).losses for p in (here, free))
    assert clipped[0] == plain[0] and clipped[-1] != plain[-1]
