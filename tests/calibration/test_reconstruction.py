"""The reconstruction of a unit as a task: its loss, and exact hypergradients of its inner run."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from calibrated import convnet, images, mlp, vectors

from metasched.calibration.reconstruction import reconstruction
from metasched.calibration.unit import Unit
from metasched.calibration.walking import units
from metasched.commands.check import random_controls, relative_distance
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.finite_differences import error_against_differences, outer_loss, span, uphill
from metasched.network.flat import rows
from metasched.network.recipe import Recipe
from metasched.training.loop import hardened_score, train

RECIPE = Recipe("ste", weights="balanced3", activations=None, granularity="channel", last=True)


@cache
def seen() -> dict[str, Unit]:
    """A linear layer with its ReLU, and a residual block."""
    found = {unit.name: unit for unit in units(mlp(), RECIPE, [vectors()])}
    return {"layer": found["2"], "block": {u.name: u for u in units(convnet(), RECIPE, [images()], by="block")}["3"]}


@pytest.mark.parametrize("kind", ["layer", "block"])
def test_the_loss_is_the_squared_error_of_the_outputs(kind: str) -> None:
    unit = seen()[kind]
    problem = reconstruction(unit, steps=3, lr=0.01, batch=1000)
    state = problem.initial({c.name: torch.ones(len(unit.layers)) for c in problem.network.method.controls})
    hard = problem.network.harden(state.params, state.method)
    weights = [hard[layer.weight_key] for layer in unit.layers]
    (outputs,), (target,) = unit.outputs(weights), unit.targets
    model = problem.network.hardened_model(problem.network.call(state.buffers), state.params, state.method)
    loss = problem.task.loss(model, problem.task.batch(0, 0))
    expected = (outputs - target).square().sum() * unit.channels / target.numel()
    torch.testing.assert_close(loss, expected)
    assert hardened_score(problem, state, "validation") == pytest.approx(-unit.error(weights))
    assert hardened_score(problem, state, "validation") == pytest.approx(-unit.error(weights))  # and again


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    task = reconstruction(seen()["layer"], steps=3, lr=0.01, batch=8).task
    (x,), _ = task.batch(1, 2).call
    assert x.shape == (8, 16) and torch.equal(x, task.batch(1, 2).call[0][0])
    assert not torch.equal(x, task.batch(1, 3).call[0][0]) and not torch.equal(x, task.batch(2, 2).call[0][0])


def test_only_the_rounding_is_trained() -> None:
    unit = seen()["block"]
    problem = reconstruction(unit, steps=3, lr=0.1, batch=8)
    controls = random_controls(problem.network.method.controls, 3, 2, 0, 0)
    start, end = problem.initial(rows(controls, 0)), train(problem, controls).state
    assert start.params.keys() == {f"inner.{n}.weight" for n in ("one", "two")} | {
        f"3.{n}/rounding" for n in ("one", "two")
    }
    for name, p in end.params.items():
        assert torch.equal(p, start.params[name]) == name.endswith("weight")
    assert all(torch.equal(b, start.buffers[name]) for name, b in end.buffers.items())


@pytest.mark.parametrize("kind", ["layer", pytest.param("block", marks=pytest.mark.slow)])
def test_hypergradients_against_central_differences(kind: str) -> None:
    """For both controls at three points, by all engines."""
    problem = reconstruction(seen()[kind], steps=3, lr=0.05, batch=16)
    outer, passed = OuterLoss("relaxed"), 0
    for index in range(3):
        here, count = problem.with_seed(index), len(problem.network.layers)
        controls = random_controls(problem.network.method.controls, 3, count, 1, index)
        slopes = [control_gradient(find_unroll(e), here, controls, outer).wrt for e in ("unroll", "sweep")]
        for control in problem.network.method.controls:
            name = control.name
            slope = slopes[0][name]
            assert bool(slope.any()) and relative_distance(slopes[1][name], slope) <= 1e-8
            direction = uphill(slope, index % count, 0, index, span(control))

            def along(h: float, n: str = name, d: torch.Tensor = direction) -> float:
                return outer_loss(here, {**controls, n: controls[n] + h * d}, outer)  # noqa: B023

            error = error_against_differences(along, float((slope * direction).sum()))
            if error is not None:  # at a kink
                assert error <= 1e-6, (name, index)
                passed += 1
    assert passed >= 3
