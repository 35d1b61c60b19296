"""Bits by channel: each group of channels trains as a layer of its own, alone, stacked, prepared and converted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from stacked_runs import SEEDS, controls_of, distance, own, problem
from torch import nn

import metasched
from metasched.core.errors import MetaschedError
from metasched.deploy.integer import input_step, integer_of
from metasched.methods.by_channel import ByChannel
from metasched.methods.config import MethodConfig
from metasched.network.quantize import quantize
from metasched.network.quantized import QuantizedNetwork
from metasched.network.recipe import Recipe
from metasched.network.size import sizes
from metasched.quantizers.levels import level_set
from metasched.training.loop import train
from metasched.training.stacked import of_run, train_mapped

BITS = "24423"


def recipe(method: str = "ste", bits: str = BITS, **more: Any) -> Recipe:
    given = {"weights": "balanced4", "activations": None, "scale": "max", "last": True, **more}
    return Recipe(method, rules=[{"match": "0", "channel_bits": bits}], **given)


def linear(rows: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, rows, bias=False), nn.ReLU(), nn.Linear(rows, 2))


def network(*args: Any, **kwargs: Any) -> QuantizedNetwork:
    return quantize(linear(), recipe(*args, **kwargs), torch.zeros(1, 6))


def test_each_channel_is_on_levels_of_its_bits_by_hand() -> None:
    net, w = network(), linear().get_parameter("0.weight").detach()
    params, state = net.initialize({n: p.detach() for n, p in net.module.named_parameters()}, net.neutral(), 0)
    hard = net.harden(params, state)["0.weight"]
    for row, found, bits in zip(w, hard, BITS, strict=True):
        step = row.abs().max() / level_set(f"balanced{bits}").levels[-1]
        torch.testing.assert_close(found, (row / step).round() * step, rtol=1e-12, atol=0)
    assert state["0/scale"].shape == (5, 1)
    assert net.layers[0].bits == pytest.approx(sum(level_set(f"balanced{b}").bits for b in BITS) / 5)


METHODS: dict[str, dict[str, Any]] = {
    "ste": {},
    "inq": {},
    "pruning": {"sparsity": 0.5},
    "joint": {"of": "widths+rates", "scale": "learned"},
    "oscillation": {"scale": "learned"},
}


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] * (m in ("pruning", "oscillation"))) for m in METHODS]
)
def test_channels_of_equal_bits_train_as_a_layer_of_their_own(method: str) -> None:
    """Rows of a linear layer do not see each other: with 2 and 4 bits they train as two layers, of 2 and of 4 bits."""
    settings = METHODS[method]
    x, target = torch.randn(16, 6), torch.randn(16, 5)

    def trained(rows: list[int], bits: str) -> torch.Tensor:
        model = nn.Sequential(nn.Linear(6, len(rows), bias=False), nn.Identity())
        model[0].weight.data.copy_(linear().get_parameter("0.weight").data[rows])  # pyright: ignore
        module, player = metasched.prepare(model, recipe(method, bits, **settings), x, total_steps=3)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        for _ in range(3):
            loss = (module(x) - target[:, rows]).square().sum() + player.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            player.step()
        return module.eval()[0].weight.detach().clone()

    both = trained([0, 1, 2, 3, 4], "24424")
    assert torch.allclose(both[[0, 3]], trained([0, 3], "22"), atol=1e-12)
    assert torch.allclose(both[[1, 2, 4]], trained([1, 2, 4], "444"), atol=1e-12)


@pytest.mark.parametrize(
    "method",
    [
        MethodConfig(name="ste", scale="learned", activation_scale="learned"),
        MethodConfig(name="inq", partition="relaxation", scale="max"),
        MethodConfig(name="ana", forward="random", scale="max"),
        MethodConfig(name="gxnor", levels="balanced3", scale="max"),
    ],
    ids=lambda method: method.name,
)
@pytest.mark.parametrize("model", ["mlp", pytest.param("convnet", marks=pytest.mark.slow)])
def test_stacked_runs_are_those_of_the_loop(method: MethodConfig, model: str) -> None:
    plain = problem(replace(method, granularity="channel"), model)
    rules = [{"match": "*1", "channel_bits": "24242422"}]
    net = quantize(plain.task.build(), Recipe(plain_config(method), rules, redraw=True), plain.task.train.x[:2])
    assert isinstance(net.methods[0], ByChannel) and not isinstance(net.methods[1], ByChannel)
    inner = replace(plain, network=net)
    controls = controls_of(inner)
    end = train_mapped(inner, controls, SEEDS)
    for i, seed in enumerate(SEEDS):
        assert distance(train(inner.with_seed(seed), own(controls, i)).state, of_run(end, i)) <= 1e-10


def plain_config(method: MethodConfig) -> MethodConfig:
    return replace(method, granularity="channel", levels="balanced3")


def test_a_prepared_network_converts_and_is_as_large_as_it_is_said() -> None:
    x = torch.randn(20, 6)
    given = recipe("ste", scale="learned", granularity="channel")
    module, player = metasched.prepare(linear(), given, x, total_steps=2)
    for _ in range(2):
        module(x).square().mean().backward()
        player.step()
    hard = metasched.convert(module).get_parameter("0.weight").detach()
    for row, bits in zip(hard, BITS, strict=True):
        assert len(row.unique()) <= 2 ** int(bits) - 1
    found = {t.what: t.bytes for t in sizes(quantize(linear(), given, x)) if t.name == "0.weight"}
    assert found == {
        "bits of channels": 3,
        "levels of 2 bits": 3,
        "scale of 2 bits": 8,
        "levels of 3 bits": 3,
        "scale of 3 bits": 4,
        "levels of 4 bits": 6,
        "scale of 4 bits": 8,
    }


def test_a_converted_network_becomes_integers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    x = torch.randn(30, 1, 5, 5)
    given = Recipe(
        "ste", [{"match": "0", "channel_bits": "2433"}], weights="balanced4", activations="uint2", scale="max"
    )
    module, _ = metasched.prepare(model, given, x)
    plain = metasched.convert(module, calibrate=[x])
    integer = integer_of(plain, x[:1], input_step(x))
    rows = integer.weighted[0].weight
    for row, bits in zip(rows, (2, 4, 3, 3), strict=True):
        assert np.abs(row).max() == 2 ** (bits - 1) - 1  # of its own levels, at its own scale


def test_a_state_of_other_channel_bits_is_refused() -> None:
    x = torch.randn(8, 6)
    one, other = (metasched.prepare(linear(), recipe(bits=bits), x)[0] for bits in ("24424", "42424"))
    one.load_state_dict(metasched.prepare(linear(), recipe(bits="24424"), x)[0].state_dict())
    with pytest.raises(MetaschedError, match="other"):
        one.load_state_dict(other.state_dict())


def test_inspect_says_that_levels_are_by_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    row = metasched.inspect(linear(), recipe(), torch.zeros(1, 6)).rows[0]
    assert row.levels is None and row.bits is not None and 1.5 < row.bits < 4 and row.coding == "by channel"
    assert "by channel (" in str(metasched.inspect(linear(), recipe(), torch.zeros(1, 6)))
    turned = nn.Sequential(nn.ConvTranspose2d(2, 4, 2), nn.ReLU(), nn.Conv2d(4, 1, 1))
    rules = [{"match": "0", "channel_bits": "2424"}]  # a mean of 3 bits, which are not 8 levels
    whole = Recipe("ste", rules, weights="int3", activations="uint3")
    first, _, activation, *_ = metasched.inspect(turned, whole, torch.zeros(1, 2, 4, 4)).rows
    assert (first.levels, first.bits, first.coding) == (None, 3.0, "by channel")
    assert (activation.levels, activation.coding) == (8, "levels")


def test_transposed_weights_have_their_output_channels_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.ReLU(), nn.Conv2d(3, 1, 1))
    rules = [{"match": "0", "channel_bits": "242"}]
    net = quantize(
        model, Recipe("ste", rules, weights="balanced4", activations=None, scale="max"), torch.zeros(1, 2, 4, 4)
    )
    params, state = net.initialize(dict(net.module.named_parameters()), net.neutral(), 0)
    hard = net.harden(params, state)["0.weight"].detach()
    assert [len(hard[:, c].unique()) <= 3 for c in range(3)] == [True, False, True]


def test_a_later_rule_about_levels_or_equal_digits_end_it() -> None:
    rules = [{"match": "0", "channel_bits": BITS}, {"match": "0", "levels": "int8"}]
    net = quantize(linear(), Recipe("ste", rules, activations=None, last=True), torch.zeros(1, 6))
    assert len(net.method_of(0).quantizer.levels.levels) == 256
    equal = network(bits="33333").method_of(0)
    assert not isinstance(equal, ByChannel) and equal.quantizer.granularity == "channel"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (recipe(bits="24"), "rule '0': gives bits to 2 output channels, and the layer has 5"),
        (recipe("metropolis", energy="batch"), "rule '0': gives bits by channel, and BatchMetropolis evaluates"),
        (recipe(weights="states2"), "rule '0': states2 are not levels of a number of bits"),
    ],
)
def test_what_does_not_fit(given: Recipe, said: str) -> None:
    with pytest.raises(MetaschedError) as caught:
        quantize(linear(), given, torch.zeros(1, 6))
    assert said in str(caught.value)


@pytest.mark.parametrize("bits", ["", "2a", "20"])
def test_digits_that_are_none(bits: str) -> None:
    with pytest.raises(MetaschedError, match="rule '0': channel_bits"):
        recipe(bits=bits)
