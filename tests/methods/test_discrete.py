"""Methods without float weights: what training carries, where the weights are, and what the two windows are."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.flat import rows
from metasched.network.module import QuantizedModule
from metasched.network.quantize import quantize
from metasched.quantizers.levels import level_set
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.loop import train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import inner_step

STEPS = 12
METHODS = {
    "gxnor": MethodConfig(name="gxnor"),
    "gxnor_states": MethodConfig(name="gxnor", levels="states3", scale="max", granularity="channel"),
    "metropolis": MethodConfig(name="metropolis"),
    "metropolis_states": MethodConfig(name="metropolis", levels="int4", scale="least_squares"),
}
OPTIMIZERS = {
    "sgd": OptimizerConfig(name="sgd", lr=0.5),
    "adam": OptimizerConfig(name="adam", lr=0.1),
    "adamw": OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.1),
}
methods = pytest.mark.parametrize("method", METHODS)
DRAW = Draw(0, 3, 1)


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def problem(method: str, optimizer: str = "adam", **settings: Any) -> InnerProblem:
    draws = torch.Generator().manual_seed(5)
    y = torch.arange(40) % 3
    part = Split(torch.randn(40, 6, generator=draws) + 2 * F.one_hot(y, 6), y)
    task = SupervisedTask("blobs", part, part, part, build, F.cross_entropy, F.cross_entropy, batch_size=20)
    rule, hyper = recipe(replace(OPTIMIZERS[optimizer], **settings))
    return InnerProblem(quantize(build(), build_method(METHODS[method]), part.x[:2]), task, rule, hyper, STEPS, seed=1)


def constant(value: float, steps: int = STEPS) -> dict[str, torch.Tensor]:
    return {"temperature": torch.full((steps, 2), value)}


def same(one: TrainingState, other: TrainingState) -> bool:
    return all(torch.equal(t, b[name]) for a, b in zip(one, other, strict=True) for name, t in a.items())


@methods
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_are_on_their_states_at_every_step(method: str, optimizer: str) -> None:
    inner = problem(method, optimizer)
    levels = torch.tensor(level_set(METHODS[method].levels).levels)
    controls = constant(1.0)
    state = inner.initial(rows(controls, 0))
    moved = 0
    for step in range(STEPS):
        before = state
        state, _, _ = inner_step(inner, state, rows(controls, step), step, differentiable=False)
        for layer in inner.network.layers:
            w, scale = state.params[f"{layer.name}.weight"], state.method[f"{layer.name}/scale"]
            assert bool((w[..., None] == scale[..., None] * levels).any(-1).all())
            moved += int((w != before.params[f"{layer.name}.weight"]).sum())
    assert moved > 0


@methods
def test_training_carries_no_float_shadow_weights(method: str) -> None:
    state = train(problem(method, "sgd"), constant(1.0)).state
    assert {name for name in state.method} == {"0/scale", "3/scale"}
    assert all(t.numel() <= 8 for t in state.method.values())  # at most one for each output channel
    assert {name for name in state.optimizer} == {f"momentum_buffer.{name}" for name in state.params}


@methods
def test_replay_and_resume_are_exact(method: str) -> None:
    inner, controls = problem(method), constant(0.8)
    whole = train(inner, controls).state
    assert same(whole, train(problem(method), controls).state)
    assert not same(whole, train(inner.with_seed(2), controls).state)
    state = inner.initial(rows(controls, 0))
    for step in range(STEPS):
        if step == 5:
            file = io.BytesIO()
            torch.save(list(state), file)
            file.seek(0)
            state = TrainingState(*torch.load(file, weights_only=True))
        state, _, _ = inner_step(inner, state, rows(controls, step), step, differentiable=False)
    assert same(whole, state)


def test_at_temperature_zero_gxnor_does_not_move() -> None:
    inner = problem("gxnor")
    first = inner.initial(rows(constant(0.0), 0))
    end = train(inner, constant(0.0)).state
    for layer in inner.network.layers:
        assert torch.equal(first.params[f"{layer.name}.weight"], end.params[f"{layer.name}.weight"])
    assert not torch.equal(first.params["5.weight"], end.params["5.weight"])  # which is not quantized


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_temperature_of_gxnor_is_the_learning_rate_of_its_discrete_weights(optimizer: str) -> None:
    ends = []
    for lr, temperature in ((0.25, 2.0), (0.5, 1.0)):
        inner = replace(problem("gxnor", optimizer, lr=lr), steps=1)
        ends.append(train(inner, constant(temperature, 1)).state.params)
    assert all(torch.equal(ends[0][f"{i}.weight"], ends[1][f"{i}.weight"]) for i in (0, 3))
    assert not torch.equal(ends[0]["5.weight"], ends[1]["5.weight"])


def test_each_layer_has_a_temperature_of_its_own() -> None:
    inner = problem("gxnor")
    controls = {"temperature": torch.tensor([0.0, 1.0]).expand(STEPS, 2)}
    first, end = inner.initial(rows(controls, 0)).params, train(inner, controls).state.params
    assert torch.equal(first["0.weight"], end["0.weight"]) and not torch.equal(first["3.weight"], end["3.weight"])


def test_a_hot_layer_goes_uphill_and_a_cold_one_does_not() -> None:
    method = build_method(METHODS["metropolis"])
    w, _, state = method.initialize(torch.zeros(50, 40), {"temperature": torch.tensor(1.0)}, DRAW)
    step = 0.3 * torch.randn_like(w)
    against = {}
    for temperature in (0.0, 0.3, 3.0):
        after, _ = method.update(w, w + step, state, {"temperature": torch.tensor(temperature)}, DRAW)
        against[temperature] = int(((after - w) * step < 0).sum())
        assert bool(((after - w) * step > 0).any())
    assert against[0.0] == 0 < 2 * against[0.3] < against[3.0]


@methods
@pytest.mark.parametrize("objective", ["hardened", "relaxed"])
def test_engines_agree_on_the_hypergradient(method: str, objective: Any) -> None:
    inner = replace(problem(method), steps=3)
    controls = {"temperature": torch.tensor([[0.9, 0.7], [1.3, 0.4], [0.5, 0.8]])}
    found = [
        control_gradient(find_unroll(name), inner, controls, OuterLoss(objective)).wrt["temperature"]
        for name in ("sweep", "unroll", "higher")
    ]
    assert bool(found[0].any(1).all())
    for other in found[1:]:
        assert (found[0] - other).norm() <= 1e-10 * found[0].norm()


def test_own_training_loop() -> None:
    network = problem("gxnor").network
    module = QuantizedModule(network, {layer.name: {"temperature": 1.0} for layer in network.layers})
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    x = torch.randn(20, 6)
    for step in range(5):
        now = {layer.name: {"temperature": 1 - step / 5} for layer in network.layers}
        loss = module(x, now, step).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.settle()
        params = dict(module.module.named_parameters())
        for layer in network.layers:
            assert set(params[f"{layer.name}.weight"].unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_activation_of_the_released_code() -> None:
    """round(clip(x - 0.5, 0, 1) + clip(x + 1.5, 0, 1) - 1), derivative 1 on 0.5 < |x| < 1.5; ours is twice that."""
    config = MethodConfig(name="gxnor", noise="uniform", activation_scale=2.0, half_width=0.25)
    method = build_method(config)
    x = torch.tensor(
        [-3.0, -1.51, -1.49, -1.01, -0.99, -0.51, -0.49, 0.0, 0.3, 0.7, 0.99, 1.01, 1.4, 1.6], requires_grad=True
    )
    y = method.activation(x, {}, {}, DRAW)
    (slope,) = torch.autograd.grad(y.sum(), x)
    v = x.detach().numpy()
    theirs = np.round(np.clip(v - 0.5, 0, 1) + np.clip(v + 1.5, 0, 1) - 1)
    assert np.array_equal(y.detach().numpy(), 2 * theirs)
    assert np.array_equal(slope.numpy(), 2.0 * ((0.5 < np.abs(v)) & (np.abs(v) < 1.5)))


@pytest.mark.parametrize("half_width", [0.2, 0.5, 0.8])
def test_windows_of_the_activation(half_width: float) -> None:
    x = torch.linspace(-2, 2, 161, requires_grad=True)
    u = (x.detach()[:, None] - torch.tensor([-0.5, 0.5])).abs()
    windows = {
        "uniform": (u < half_width) / (2 * half_width),
        "triangular": (half_width - u).clamp_min(0) / half_width**2,
    }
    for noise, expected in windows.items():
        method = build_method(MethodConfig(name="gxnor", noise=noise, half_width=half_width))  # pyright: ignore
        y = method.activation(x, {}, {}, DRAW)
        (slope,) = torch.autograd.grad(y.sum(), x)
        inside = ((u - half_width).abs() > 1e-9).all(1)  # not on an edge of a window
        assert torch.allclose(slope[inside], expected.sum(1)[inside])
        assert set(y.tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("name", ["gxnor", "metropolis"])
def test_unevenly_spaced_levels_are_refused(name: Any) -> None:
    with pytest.raises(MetaschedError, match=r"method.levels: must be evenly spaced.*statesN"):
        build_method(MethodConfig(name=name, levels="pow2_4"))


def test_there_are_2_to_the_n_plus_1_states() -> None:
    for n in range(1, 8):
        levels = level_set(f"states{n}")
        assert len(levels.levels) == 2**n + 1 and levels.levels[0] == -1 and levels.levels[-1] == 1
        assert set(levels.jumps) == {2 / 2**n}
