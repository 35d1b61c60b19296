"""Adaptive cooling: what is accepted goes where the schedule means it to be, in any unit of energy; exact resumes."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched.core.randomness import Draw
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.methods import build_method
from metasched.methods.adaptive_cooling import GAIN, adapted
from metasched.methods.config import MethodConfig
from metasched.methods.metropolis import Metropolis
from metasched.network.flat import rows
from metasched.network.quantize import quantize
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.loop import train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import inner_step

CONFIG = MethodConfig(name="metropolis", cooling="adaptive", levels="states3")


def test_the_rule_is_that_of_the_formula() -> None:
    energies, log_factor, c = np.array([0.5, -1.0, 2.0, 0.0]), 0.3, 0.6
    temperature = c * math.exp(log_factor)
    accepted = np.exp(-energies[energies > 0] / temperature).mean()
    expected = log_factor + GAIN * (c / (1 + c) - accepted)
    given = [torch.tensor(x, requires_grad=True) for x in (log_factor, c, energies, temperature)]
    found = adapted(*given)
    assert float(found) == pytest.approx(expected, rel=1e-12) and not found.requires_grad
    downhill = adapted(given[0], given[1], torch.tensor([-1.0, 0.0]), given[3])
    assert float(downhill) == log_factor


@pytest.mark.parametrize("unit", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("c", [0.1, 0.786, 3.0])
def test_in_any_unit_of_exponential_energies_the_factor_becomes_the_unit(unit: float, c: float) -> None:
    """E exp(-x / (f c)) = f c / (f c + unit), which is c / (1 + c) for f = unit."""
    levels = (torch.arange(20_000) + 0.5) / 20_000
    energies = -unit * torch.log1p(-levels)  # quantiles
    log_factor, control = torch.tensor(0.0), torch.tensor(c)
    for _ in range(400):
        log_factor = adapted(log_factor, control, energies, control * log_factor.exp())
    assert float(log_factor) == pytest.approx(math.log(unit), abs=0.02)


def share_of_uphill(method: Metropolis, temperature: float, steps: int) -> float:
    """Of the proposals against the step that stay in range, how many are accepted after so many steps."""
    controls = {"temperature": torch.tensor(temperature)}
    draws = torch.Generator().manual_seed(3)
    w, _, state = method.initialize(torch.zeros(100, 80), controls, Draw(0, 0, 0))
    moved, proposed = 0, 0
    for t in range(steps):
        step = 0.1 * torch.randn(w.shape, generator=draws)
        after, state = method.update(w, w + step, state, controls, Draw(0, t, 0))
        if t >= steps - 20:
            k, x = method.in_quanta(w, w + step, state)
            against = Draw(0, t, 0).uniform("direction", w) < method.uphill
            size = x.abs().floor() + (Draw(0, t, 0).uniform("jump", w) < torch.tanh(3 * (x.abs() % 1)))
            there = k - x.sign() * size
            climbs = against & (size > 0) & (there >= 0) & (there <= method.top)
            moved, proposed = moved + int((climbs & (after != w)).sum()), proposed + int(climbs.sum())
        w = after
    assert proposed > 1000
    return moved / proposed


@pytest.mark.parametrize("temperature", [0.25, 0.786])
def test_the_acceptance_approaches_its_target(temperature: float) -> None:
    method = build_method(CONFIG)
    assert isinstance(method, Metropolis)
    target = temperature / (1 + temperature)
    assert share_of_uphill(method, temperature, 80) == pytest.approx(target, abs=0.015)
    assert abs(share_of_uphill(replace(method, adaptive=False), temperature, 80) - target) > 0.05


def test_at_temperature_zero_nothing_climbs() -> None:
    method = build_method(CONFIG)
    assert isinstance(method, Metropolis)
    assert share_of_uphill(method, 0.0, 25) == 0


def problem(method: MethodConfig = CONFIG) -> InnerProblem:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    draws = torch.Generator().manual_seed(5)
    y = torch.arange(40) % 3
    part = Split(torch.randn(40, 6, generator=draws) + 2 * F.one_hot(y, 6), y)
    task = SupervisedTask("blobs", part, part, part, build, F.cross_entropy, F.cross_entropy, batch_size=20)
    rule, hyper = recipe(OptimizerConfig(lr=0.1))
    return InnerProblem(quantize(build(), build_method(method), part.x[:2]), task, rule, hyper, 8, seed=1)


def test_each_layer_has_a_factor_and_a_run_is_resumed_exactly() -> None:
    inner, controls = problem(), {"temperature": torch.linspace(1, 0.1, 8)[:, None].expand(8, 2)}
    whole = train(inner, controls).state
    factors = [whole.method[f"{layer.name}/log_factor"] for layer in inner.network.layers]
    assert all(f.shape == () for f in factors) and float(factors[0]) != float(factors[1]) != 0
    state = inner.initial(rows(controls, 0))
    assert not state.method["0/log_factor"].any()
    for step in range(8):
        if step == 5:
            file = io.BytesIO()
            torch.save(list(state), file)
            file.seek(0)
            state = TrainingState(*torch.load(file, weights_only=True))
        state, _, _ = inner_step(inner, state, rows(controls, step), step, differentiable=False)
    for one, other in zip(whole, state, strict=True):
        assert all(torch.equal(t, other[name]) for name, t in one.items())


def test_engines_agree_on_the_hypergradient() -> None:
    inner = replace(problem(), steps=3)
    controls = {"temperature": torch.tensor([[0.9, 0.7], [1.3, 0.4], [0.5, 0.8]])}
    found = [
        control_gradient(find_unroll(name), inner, controls, OuterLoss()).wrt["temperature"]
        for name in ("sweep", "unroll")
    ]
    assert bool(found[0].any(1).all()) and (found[0] - found[1]).norm() <= 1e-10 * found[0].norm()
