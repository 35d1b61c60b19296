"""Bayesian Bits: steps that telescope, the published law of the gates, the penalty by enumeration, and fixed gates."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched import convert, hand_coded, prepare
from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.methods import build_method
from metasched.methods.base import State
from metasched.methods.bayesian_bits import WIDTHS, BayesianBits
from metasched.methods.config import MethodConfig
from metasched.network.costs import bit_operations
from metasched.network.quantize import quantize
from metasched.network.recipe import Recipe
from metasched.schedules.base import progress_of_steps

WEIGHTS_ONLY = {"activation_levels": None}


def method_of(**parameters: Any) -> BayesianBits:
    method = build_method(MethodConfig(name="bayesian_bits", **{**WEIGHTS_ONLY, **parameters}))
    assert isinstance(method, BayesianBits)
    return method


def controls(mu: float = 0.1, temperature: float = 2 / 3, fixed: float = 0.0) -> dict[str, torch.Tensor]:
    names = ("mu", "gate_temperature", "gates_fixed")
    return {name: torch.tensor(v) for name, v in zip(names, (mu, temperature, fixed), strict=True)}


def started(w: torch.Tensor, bits: int = 16, fixed: float = 0.0) -> tuple[BayesianBits, State]:
    """A prepared state with the gates up to some bits open."""
    method = method_of()
    _, trainable, state = method.initialize(w, controls(), Draw(0, 0, 0))
    own = {**trainable, **state, "gates": torch.tensor([6.0 if b <= bits else -9.0 for b in WIDTHS[1:]])}
    return method, method.prepare(w, own, controls(fixed=fixed), Draw(0, 0, 0))


# --- the grid ---


@pytest.mark.parametrize(("bits", "levels"), [(2, 3), (4, 15), (8, 255), (16, 65535)])
def test_open_gates_telescope_to_one_grid(bits: int, levels: int) -> None:
    w = 4 * torch.rand(50, 400) - 2
    method, state = started(w, bits, fixed=1.0)
    seen = method.weight(w, state, controls(), Draw(0, 0, 0))
    top = w.abs().max() * (1 - 1e-7)
    step = 2 * w.abs().max() / (2**bits - 1)
    torch.testing.assert_close(seen, step * torch.round(w.clamp(-top, top) / step), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen, method._telescoped(w, state["range"], state["open"], state["kept"]))
    assert torch.equal(seen, method.harden(w, state, 0.5))
    grid = method.levels_of(state)
    assert grid.shape == (1, 1, levels) and (0 in grid)
    whole = seen / (2 * state["range"] / 3 / {2: 1, 4: 5, 8: 5 * 17, 16: 5 * 17 * 257}[bits])
    torch.testing.assert_close(whole, whole.round(), rtol=1e-12, atol=1e-9)
    if bits < 16:
        assert torch.isin(seen, grid).all()
        assert len(seen.unique()) == levels


def test_a_gate_counts_where_those_before_it_are_open() -> None:
    method, state = started(torch.randn(6, 6), 16)
    state["open"] = torch.tensor([1.0, 0.0, 1.0])
    assert method.bits_in(state, (6, 6)) == 4 and method.levels_of(state).shape[-1] == 15


def test_pruned_channels_are_zero() -> None:
    w = torch.randn(4, 3, 2, 2)
    method = method_of()
    _, trainable, state = method.initialize(w, controls(), Draw(0, 0, 0))
    assert trainable["channel_gates"].shape == (4, 1, 1, 1)
    own = {**trainable, **state, "channel_gates": torch.tensor([6.0, -9.0, 6.0, -9.0]).reshape(4, 1, 1, 1)}
    state = method.prepare(w, own, controls(), Draw(0, 0, 0))
    hard = method.harden(w, state, 0.5)
    assert hard[[1, 3]].eq(0).all() and hard[[0, 2]].ne(0).any()
    assert method.bits_in(state, w.shape) == 8  # half of the channels at 16


def test_rounding_is_straight_through_within_the_range_and_the_range_gets_what_is_beyond() -> None:
    w = torch.tensor([[0.31, -0.9, 2.0, -3.0]], requires_grad=True)
    method, state = started(w, 4)
    reach = torch.ones(1, 1, requires_grad=True)
    state["range"] = reach
    (to_w,) = torch.autograd.grad(method.harden(w, state, 0.5).sum(), w, retain_graph=True)
    assert to_w.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    step = 2 / 15
    (to_reach,) = torch.autograd.grad(method.harden(w, state, 0.5)[0, 0], reach)
    expected = (round(0.31 / step) - 0.31 / step) * 2 / 15  # LSQ's, times ds / d beta
    assert float(to_reach) == pytest.approx(expected, rel=1e-9)
    (to_reach,) = torch.autograd.grad(method.harden(w, state, 0.5)[0, 2], reach)
    assert float(to_reach) == pytest.approx(7 * 2 / 15, rel=1e-6)


# --- gates ---


@pytest.mark.parametrize("logit", [-1.0, 0.5, 3.0])
def test_gates_are_0_and_1_as_often_as_the_hard_concrete_law_says(logit: float) -> None:
    temperature, n = 2 / 3, 20_000
    w = torch.ones(n, 1)
    method, state = started(w, 2)
    state |= {"channel_gates": torch.full((n, 1), logit), "fixed": torch.zeros(())}
    z = method.weight(w, state, controls(temperature=temperature), Draw(1, 0, 0)) / method.harden(w[:1], state, 0.5)

    def below(z: float) -> float:
        """P(stretched concrete < z)."""
        s = (z + 0.1) / 1.2
        return 1 / (1 + math.exp(logit - temperature * math.log(s / (1 - s))))

    assert float((z == 0).double().mean()) == pytest.approx(below(0.0), abs=0.015)
    assert float((z == 1).double().mean()) == pytest.approx(1 - below(1.0), abs=0.015)


@pytest.mark.parametrize(("logit", "is_open"), [(-0.92, True), (-0.95, False)])  # 2/3 log(11) - log(0.66 / 0.34)
def test_a_gate_is_open_where_it_is_seldom_0(logit: float, is_open: bool) -> None:
    w = torch.ones(1, 1)
    method, state = started(w, 2)
    state["channel_gates"] = torch.full((1, 1), logit)
    assert bool(method.prepare(w, state, controls(), Draw(0, 0, 0))["kept"]) is is_open


def test_the_penalty_is_the_expected_sum_over_all_states_of_the_gates() -> None:
    w = torch.randn(2, 3)
    method, state = started(w)
    state["gates"] = torch.tensor([0.3, -0.4, 1.1])
    state["channel_gates"] = torch.tensor([[0.2], [-0.7]])
    temperature = 0.5
    q = [float(torch.sigmoid(phi + temperature * math.log(11))) for phi in state["gates"]]
    kept = sum(float(torch.sigmoid(phi + temperature * math.log(11))) for phi in state["channel_gates"]) / 2
    expected = 0.0
    for states in product((0, 1), repeat=4):
        chance = math.prod(p if z else 1 - p for z, p in zip(states, [kept, *q], strict=True))
        through = [math.prod(states[: i + 1]) for i in range(4)]
        expected += chance * sum(b * z for b, z in zip(WIDTHS, through, strict=True))
    for cost in (1.0, 0.25):
        found = method.of_cost(cost).penalty(w, state, controls(mu=0.2, temperature=temperature))
        assert found is not None and float(found) == pytest.approx(0.2 * cost * expected, rel=1e-12)


def test_fixed_gates_stay_and_the_penalty_ends() -> None:
    w = torch.randn(5, 4)
    method, state = started(w, 8, fixed=0.5)
    moved = {name: state[name] - 20 for name in ("gates", "channel_gates")}
    proposed = {**moved, "range": state["range"] * 2}
    settled = method.update_trainable(state, proposed, controls())
    assert torch.equal(settled["gates"], state["gates"])
    assert torch.equal(settled["channel_gates"], state["channel_gates"])
    assert torch.equal(settled["range"], 2 * state["range"])
    again = method.prepare(w, {**state, **moved}, controls(temperature=0.1), Draw(0, 1, 0))
    assert torch.equal(again["open"], state["open"]) and torch.equal(again["kept"], state["kept"])
    assert float(method.penalty(w, again, controls(mu=1.0))) == 0  # pyright: ignore[reportArgumentType]
    free = method.update_trainable({**state, "fixed": torch.zeros(())}, proposed, controls())
    assert torch.equal(free["gates"], moved["gates"])


# --- networks ---


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8), nn.Linear(8, 3)
    )


def test_costs_are_multiply_accumulates_over_those_of_the_costliest_layer() -> None:
    network = quantize(convnet(), Recipe("bayesian_bits", activations=None), torch.randn(2, 1, 8, 8))
    macs = [36 * 9 * 4, 16 * 36 * 6, 96 * 8]
    assert [network.method_of(i).cost for i in range(3)] == pytest.approx([m / max(macs) for m in macs])  # pyright: ignore


def test_where_nothing_is_multiplied_the_number_of_weights_counts() -> None:
    model = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    recipe = Recipe("bayesian_bits", activations=None, include=["0"])
    network = quantize(model, recipe, torch.arange(3))
    assert [network.method_of(i).cost for i in range(2)] == [1.0, 3 * 20 / 200]  # pyright: ignore


def test_a_penalty_closes_gates_and_what_is_converted_has_the_grid_and_costs_less() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    recipe = Recipe("bayesian_bits", activations=None)
    costs = {}
    for mu in (0.0, 0.5):
        fixed = hand_coded("bayesian_bits")["bayesian_bits_001"]

        def schedule(
            progress: torch.Tensor, layers: Any, mu: float = mu, fixed: Any = fixed
        ) -> dict[str, torch.Tensor]:
            values = fixed(progress, layers)
            return {**values, "mu": torch.full_like(values["mu"], mu)}

        module, player = prepare(model, recipe, x[:2], schedule, total_steps=80)
        assert bit_operations(module, x[:2]).relative == 0.5
        optimizer = torch.optim.Adam(module.parameters(), lr=0.2)
        for _ in range(80):
            loss = F.cross_entropy(module(x), y) + player.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            player.step()
        module.eval()
        plain = convert(module)
        assert torch.equal(plain(x), module(x))
        if mu:
            note = plain[0].quantization
            assert torch.isin(plain[0].weight, note["scale"] * torch.tensor(note["levels"])).all()
        else:
            assert not hasattr(plain[0], "quantization")  # 16 bits have no level set
        costs[mu] = bit_operations(module, x[:2])
    assert costs[0.5].relative < 0.2 < costs[0.0].relative
    assert costs[0.5].layers[0].macs == 2 * 96 and costs[0.5].total == 192 * costs[0.5].layers[0].bits


def test_costs_of_something_else_are_refused() -> None:
    with pytest.raises(MetaschedError, match=r"^bit_operations: the module has no quantized layer; give what prepare"):
        bit_operations(nn.Linear(2, 2), torch.zeros(1, 2))


def test_the_schedules_fix_gates_for_the_last_quarter() -> None:
    network = quantize(convnet(), Recipe("bayesian_bits", activations=None), torch.randn(2, 1, 8, 8))
    for name, schedule in hand_coded("bayesian_bits").items():
        values = schedule(progress_of_steps(41), network.layers)
        assert values["gates_fixed"][:, 0].tolist() == [0.0] * 30 + [1.0] * 11, name
    assert values["gate_temperature"][0, 0] == 2 / 3 and values["gate_temperature"][-1, 0] == 0.1  # pyright: ignore
