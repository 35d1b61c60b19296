"""Bits by channel: exact within a layer, never worse than by layer there, and a recipe within the budget."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import metasched
from metasched.core.errors import MetaschedError
from metasched.network.recipe import Recipe
from metasched.network.size import network_bytes
from metasched.search.bits.allocate import allocate
from metasched.search.bits.channels import ChannelBits, lowered, with_channels
from metasched.search.bits.resources import bit_problem, rules_of
from metasched.search.config import AllocateConfig

BITS = (2, 3, 5)


@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=4), st.floats(2, 5))
def test_the_channels_of_a_goal_are_the_best_by_brute_force(drawn: list[list[int]], goal: float) -> None:
    errors = np.array(drawn, float)
    found = ChannelBits(errors, BITS).at(goal)

    def total(choice: tuple[int, ...]) -> float:
        return float(errors[range(len(errors)), choice].sum())

    def mean(choice: tuple[int, ...]) -> float:
        return sum(BITS[k] for k in choice) / len(choice)

    fitting = [c for c in itertools.product(range(3), repeat=len(errors)) if mean(c) <= goal + 1e-9]
    assert mean(found) <= goal + 1e-9 and total(found) == min(map(total, fitting))


def made() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 8), nn.ReLU(), nn.Linear(8, 3))
    for p in model.parameters():
        p.data *= torch.rand(len(p), *[1] * (p.dim() - 1)) * 3  # channels of different sizes
    return model, torch.randn(30, 1, 5, 5)


def loss_of(model: nn.Module, x: torch.Tensor) -> Any:
    with torch.no_grad():
        wanted = model(x)
    return lambda module: (module(x) - wanted).square().mean()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("resource", ["size", "operations"])
def test_a_recipe_by_channel_within_the_budget(resource: str, granularity: str) -> None:
    model, x = made()
    recipe = Recipe("ste", weights="balanced4", activations=None, scale="max", last=True, granularity=granularity)
    settings = {"resource": resource, "budget": "4 bits", "bits": (2, 3, 4, 5, 6), "evaluations": 20}
    found = allocate(model, recipe, x, loss_of(model, x), search="autoq", **settings)
    assert found.problem.fits(found.best.choice)
    network = metasched.quantize(model, found.recipe, x)
    if resource == "size":
        assert network_bytes(network) == found.best.cost
    params, state = network.initialize(dict(model.named_parameters()), network.neutral(), 0)
    hard = network.harden(params, state)
    plain, _ = made()
    plain.load_state_dict({name: hard[name].detach() for name in plain.state_dict()})
    with torch.no_grad():
        assert -found.best.score == pytest.approx(float(loss_of(model, x)(plain)), rel=1e-9)
    assert found.uniform is not None and found.best.score >= found.uniform.score
    if granularity == "channel":  # of one scale a layer, more bits may be worth less than scales by channel cost
        assert any(isinstance(b, str) for b in found.bits.values()) and found.best.score > found.uniform.score
    metasched.prepare(model, found.recipe, x)


def test_at_equal_mean_bits_channels_have_no_larger_error_than_layers() -> None:
    model, x = made()
    recipe = Recipe("ste", weights="balanced4", activations=None, scale="max", last=True, granularity="channel")
    settings = AllocateConfig(search="autoq", bits=(2, 3, 4, 5, 6), budget=10**6)
    problem = with_channels(bit_problem(model, recipe, x, settings), model, recipe, x, settings)
    assert problem.channels is not None
    for channels in problem.channels:
        best = ChannelBits(channels.errors, problem.bits)
        for k, bits in enumerate(problem.bits):
            by_channel = channels.errors[range(len(channels.errors)), best.at(bits)].sum()
            assert by_channel <= channels.errors[:, k].sum() * (1 + 1e-12)


def test_goals_are_lowered_until_the_budget_holds() -> None:
    model, x = made()
    recipe = Recipe("ste", weights="balanced4", activations=None, scale="max", last=True, granularity="channel")
    settings = AllocateConfig(search="autoq", bits=(2, 4, 6), budget="4 bits")
    problem = with_channels(bit_problem(model, recipe, x, settings), model, recipe, x, settings)
    layers = [ChannelBits(c.errors, problem.bits) for c in problem.channels or ()]
    low, high = lowered(problem, layers, [2.0] * 3), lowered(problem, layers, [6.0] * 3)
    assert problem.fits(low) and problem.fits(high)
    assert problem.total(high) > 0.9 * problem.budget
    network = metasched.quantize(model, Recipe(recipe.method, rules_of(recipe, problem.bits_of(high)), last=True), x)
    assert network_bytes(network) == problem.total(high)


def test_times_by_layer_say_nothing_of_channels(tmp_path: Any) -> None:
    model, x = made()
    recipe = Recipe("ste", weights="balanced4", activations=None, scale="max", last=True)
    (tmp_path / "t.json").write_text('{"0": {"2": 1}, "3": {"2": 1}, "5": {"2": 1}}')
    given = {"resource": "latency", "latency": str(tmp_path / "t.json"), "bits": (2,), "budget": 9.0}
    with pytest.raises(MetaschedError, match=r"allocate\.resource: has times by layer, and autoq gives bits by"):
        allocate(model, recipe, x, loss_of(model, x), search="autoq", **given)
