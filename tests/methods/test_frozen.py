"""Frozen weights stay where they are, whatever the optimizer proposes: 100 steps of a real task."""

from __future__ import annotations

import pytest
import torch

from metasched.config.schema import Experiment
from metasched.methods.config import MethodConfig
from metasched.network.flat import rows
from metasched.runs.config import RunConfig
from metasched.schedules.base import progress_of_steps
from metasched.tasks.config import TaskConfig
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem
from metasched.training.step import inner_step

OPTIMIZERS = {
    "sgd": OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-3),
    "adamw": OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1),
}
STEPS = 100


def digits(method: str, optimizer: str, partition: str = "magnitude") -> InnerProblem:
    return build_problem(
        Experiment(
            task=TaskConfig(name="digits", model="mlp", width=8, steps=STEPS, batch=32),
            optimizer=OPTIMIZERS[optimizer],
            method=MethodConfig(name=method, scale="max", partition=partition),  # pyright: ignore
            run=RunConfig(dtype="float64"),
        ).problem
    )


def controls(problem: InnerProblem, fraction: torch.Tensor) -> dict[str, torch.Tensor]:
    """{control: [T, L]}; falling noise for the joint method."""
    fraction = fraction[:, None].expand(-1, len(problem.network.layers))
    noises = dict.fromkeys(("weight_noise", "activation_noise"), 0.5 * (1 - fraction))
    known = {"freeze_fraction": fraction, **noises, "noise_mean": 0 * fraction}
    return {c.name: known[c.name] for c in problem.network.method.controls}


@pytest.mark.pairwise
@pytest.mark.parametrize("partition", ["magnitude", "random", "relaxation"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["inq", "joint"])
def test_frozen_weights_move_by_exactly_zero(method: str, optimizer: str, partition: str) -> None:
    problem = digits(method, optimizer, partition)
    values = controls(problem, torch.full((STEPS,), 0.5))
    keys = [f"{layer.name}.weight" for layer in problem.network.layers]
    start = state = problem.initial(rows(values, 0))
    masks = None
    proposed = {key: torch.zeros_like(start.params[key]) for key in keys}
    for step in range(STEPS):
        before = state
        state, _, gradients = inner_step(problem, state, rows(values, step), step, differentiable=False)
        wish, _ = problem.optimizer.update(before.params, gradients, before.optimizer, problem.hyper_at(step))
        for key in keys:
            proposed[key] = torch.maximum(proposed[key], (wish[key] - before.params[key]).abs())
        now = {layer.name: state.method[f"{layer.name}/frozen"] for layer in problem.network.layers}
        masks = masks or now
        assert all(torch.equal(masks[name], now[name]) for name in masks)
    assert masks
    for key, mask in zip(keys, masks.values(), strict=True):
        moved = (state.params[key] - start.params[key]).abs()
        assert mask.mean().item() == pytest.approx(0.5, abs=1 / mask.numel())
        assert moved[mask == 1].max().item() == 0.0
        assert moved[mask == 0].max().item() > 0.01
        assert proposed[key][mask == 1].max().item() > 1e-4  # the optimizer did want to move them


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["inq", "joint"])
def test_after_the_last_step_all_weights_are_frozen_on_their_levels(method: str, optimizer: str) -> None:
    problem = digits(method, optimizer)
    values = controls(problem, progress_of_steps(STEPS))
    state = problem.initial(rows(values, 0))
    seen: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        state, _, _ = inner_step(problem, state, rows(values, step), step, differentiable=False)
        for layer in problem.network.layers:
            mask = state.method[f"{layer.name}/frozen"] == 1
            w = state.params[f"{layer.name}.weight"]
            if layer.name in seen:
                held = ~seen[layer.name].isnan()
                assert torch.equal(w[held], seen[layer.name][held])
            seen[layer.name] = torch.where(mask, w, torch.nan)
    hardened = problem.network.harden(state.params, state.method)
    for layer in problem.network.layers:
        assert bool((state.method[f"{layer.name}/frozen"] == 1).all())
        scale = state.method[f"{layer.name}/scale"]
        quanta = hardened[f"{layer.name}.weight"] / scale
        assert set(quanta.unique().tolist()) <= {-1.0, 0.0, 1.0}
