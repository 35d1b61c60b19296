"""Activations as functions, and modules that are called several times: each call is a site of its own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from metasched import MetaschedError, MethodConfig, QuantizedModule, Recipe, Rule, quantize
from metasched.network.quantized import QuantizedNetwork
from metasched.network.sites import activations

X = torch.linspace(-2, 2, 64).reshape(8, 8)
STE = MethodConfig(name="ste", scale="max")


def plain(network: QuantizedNetwork, x: torch.Tensor, activate: Callable[[int, torch.Tensor], torch.Tensor]) -> Any:
    """The module of a network with its own weights, and these activations."""
    params = {key: p.detach() for key, p in network.module.named_parameters()}
    with activations(activate):
        return network.call(network.buffers())(params, x)


class Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head, self.function = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(self.b(self.function(self.a(x)))))


FUNCTIONS = {
    "relu": (
        F.relu,
        torch.relu,
        lambda x: x.relu(),
        lambda x: x.relu_(),
        torch.relu_,
        lambda x: F.relu(x, inplace=True),
    ),
    "relu6": (F.relu6,),
    "gelu": (F.gelu, lambda x: F.gelu(x, approximate="tanh")),
    "silu": (F.silu, lambda x: F.silu(input=x)),
    "hardswish": (F.hardswish,),
    "hardsigmoid": (F.hardsigmoid,),
    "mish": (F.mish,),
    "leaky_relu": (F.leaky_relu, lambda x: F.leaky_relu(x, 0.2, inplace=True)),
    "elu": (F.elu,),
    "tanh": (F.tanh, torch.tanh, lambda x: x.tanh(), lambda x: x.tanh_()),
    "sigmoid": (torch.sigmoid, lambda x: x.sigmoid()),
}
CASES = [(name, i) for name, functions in FUNCTIONS.items() for i in range(len(functions))]


@pytest.mark.parametrize(("name", "i"), CASES)
def test_a_function_is_a_site(name: str, i: int) -> None:
    model = Function(FUNCTIONS[name][i])
    network = quantize(model, Recipe(STE), X)
    assert [layer.quantizes for layer in network.layers] == ["weight+activation"] * 2
    assert [t.name for t in network.tensors if t.what == "activation"] == [f"{name}()#1", f"{name}()#2"]
    seen: list[int] = []
    found = plain(network, X, lambda layer, x: (seen.append(layer), x)[1])  # the function is kept: levels are signed
    assert torch.equal(found, model(X)) and seen == [0, 1]
    module = QuantizedModule(network, {"a": {}, "b": {}})
    hidden: list[torch.Tensor] = []
    module.module.get_submodule("head").register_forward_pre_hook(lambda _m, inputs: hidden.append(inputs[0]))
    module.deployed(X)
    module(X, {"a": {}, "b": {}}, 0).sum().backward()
    assert all(len(h.unique()) <= 3 for h in hidden) and len(hidden) == 2
    assert module.module.get_parameter("a.weight").grad is not None


class Twice(nn.Module):
    """One activation module after two layers; ``times`` more calls if asked for."""

    def __init__(self, times: int = 0, inplace: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.head, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.ReLU(inplace)
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.a(x))
        if self.times >= 0:
            x = self.act(self.b(x) + x)  # a residual sum
        for _ in range(self.times):
            x = self.act(x)
        return self.head(x)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("redraw", [False, True])
def test_a_module_that_is_called_twice_is_two_sites(redraw: bool, inplace: bool) -> None:
    model = Twice(inplace=inplace)
    network = quantize(model, Recipe(STE, redraw=redraw), X)
    assert [t.name for t in network.tensors if t.what == "activation"] == ["act#1", "act#2"]
    seen: list[int] = []
    found = plain(network, X, lambda layer, x: (seen.append(layer), torch.relu(x))[1])
    assert torch.equal(found, model(X.clone())) and seen == [0, 1]


@pytest.mark.parametrize(("times", "said"), [(1, "calls act more than 2 times"), (-1, "calls act 1 times of 2")])
def test_another_number_of_calls_is_refused_by_name(times: int, said: str) -> None:
    network = quantize(Twice(), Recipe(STE), X)
    module = QuantizedModule(network, {"a": {}, "b": {}})
    module(X, {"a": {}, "b": {}}, 0)
    module.module.times = times  # type: ignore[assignment]
    for _ in range(2):  # the next pass begins anew
        with pytest.raises(MetaschedError, match=rf"^model: {said} in a pass"):
            module.deployed(X)
    module.module.times = 0  # type: ignore[assignment]
    module.deployed(X)


def test_an_error_of_the_model_leaves_nothing_behind() -> None:
    network = quantize(Function(F.relu), Recipe(STE), X)
    module = QuantizedModule(network, {"a": {}, "b": {}})
    wanted = module.deployed(X)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        module.deployed(X[:, :5])
    assert torch.equal(module.deployed(X), wanted)
    assert len(F.relu(X).unique()) > 3  # outside of the network it is itself


def test_a_loop_over_one_layer_is_one_layer() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = torch.tanh(self.cell(x))
            return self.head(x)

    network = quantize(Loop(), Recipe(STE), X)
    assert [layer.name for layer in network.layers] == ["cell"]
    assert [t.layer for t in network.tensors if t.what == "activation"] == [0, 0, 0]


def test_copies_and_pickles_have_their_own_account() -> None:
    network = quantize(Function(F.relu), Recipe(STE), X)
    module = QuantizedModule(network, {"a": {}, "b": {}})
    wanted = module.deployed(X)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(network))):
        other = QuantizedModule(other, {"a": {}, "b": {}}) if isinstance(other, QuantizedNetwork) else other
        assert torch.equal(other.deployed(X), wanted)


class Saving(nn.Module):
    def __init__(self, save: bool, reentrant: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.block, self.head = nn.Linear(8, 8), Function(F.relu), nn.Linear(3, 3)
        self.other, self.save, self.reentrant = Twice(), save, reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in (self.block, self.other):
            y = checkpoint(block, x, use_reentrant=self.reentrant) if self.save else block(x)
        return self.head(self.block(x) + y)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_sites_are_told_apart_where_a_backward_pass_recomputes(reentrant: bool) -> None:
    found = []
    for save in (False, True):
        network = quantize(
            Saving(save, reentrant), Recipe(MethodConfig(name="joint", scale="max", forward="random")), X
        )
        values = {"freeze_fraction": 0.5, "weight_noise": 0.5, "activation_noise": 0.5, "noise_mean": 0.0}
        controls = {layer.name: values for layer in network.layers}
        module = QuantizedModule(network, controls)
        module(X, controls, 0).square().sum().backward()
        found.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-12, atol=1e-12)


class Block(nn.Module):
    """Reads the weight of a layer that it does not call, has a tied one, and a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.tied = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.tied.weight = self.two.weight
        self.pair = nn.Sequential(self.two, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(self.pair(F.linear(x, self.one.weight, self.one.bias)))


class Reading(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.block, self.head, self.reentrant = nn.Linear(8, 8), Block(), nn.Linear(8, 3), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_weights_that_are_read_without_their_layer(reentrant: bool) -> None:
    found = []
    for how in (None, reentrant):
        network = quantize(Reading(how), Recipe(MethodConfig(name="inq", scale="max")), X)
        assert [layer.name for layer in network.layers] == ["first", "block.one", "block.two"]
        controls = {layer.name: {"freeze_fraction": 0.5} for layer in network.layers}
        module = QuantizedModule(network, controls)
        module(X, controls, 0).square().sum().backward()
        found.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-12, atol=1e-12)


class Gates(nn.Module):
    """Squeeze and excitation, a gated linear unit, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.se, self.up, self.gate, self.down = (nn.Linear(8, 8) for _ in range(5))
        self.act, self.head = nn.Hardswish(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.a(x))
        x = x * F.hardsigmoid(self.se(x.mean(0, keepdim=True)))
        x = self.down(F.silu(self.gate(x)) * self.up(x))
        return self.head(torch.softmax(x @ x.T, -1) @ x)


def why(network: QuantizedNetwork) -> dict[str, str]:
    return {t.name: t.why for t in network.tensors if t.what == "activation"}


def test_gates_and_probabilities_stay_in_float_unless_a_rule_says_so() -> None:
    said = why(quantize(Gates(), Recipe(STE), X))
    by_rule = "is quantized by a rule only"
    assert said == {"act": "", "hardsigmoid()": "is a gate", "silu()": "is a gate", "softmax()": by_rule}
    rules = Rule("SiLU", quantize=True), Rule("softmax()", quantize=True, activation_levels="uint4")
    network = quantize(Gates(), Recipe(STE, rules), X)
    assert why(network) == {"act": "", "hardsigmoid()": "is a gate", "silu()": "", "softmax()": ""}


@pytest.mark.parametrize(
    ("kind", "levels", "redraw", "kept"),
    [
        (nn.ReLU, "uint4", False, False),  # the quantizer is a ReLU
        (nn.ReLU, "int4", False, True),
        (nn.ReLU, "ternary", True, False),  # as ANA publishes it
        (nn.ReLU6, "uint4", False, True),
        (nn.ReLU6, "uint4", True, False),
        (nn.GELU, "int4", True, True),
        (nn.Sigmoid, "uint4", True, True),
        (nn.PReLU, "int4", False, True),
    ],
)
def test_which_functions_a_quantizer_stands_for(kind: type[nn.Module], levels: str, redraw: bool, kept: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), kind(), nn.Linear(8, 3))
    method = MethodConfig(name="ste", scale="max", activation_levels=levels, activation_scale=0.25)
    for rule, wanted in (
        ((), kept),
        ((Rule("1", activation="keep"),), True),
        ((Rule("1", activation="replace"),), False),
    ):
        network = quantize(model, Recipe(method, rule, redraw=redraw), X)
        assert [t.keeps for t in network.tensors if t.what == "activation"] == [wanted]
        given: list[torch.Tensor] = []
        plain(network, X, lambda _, x, given=given: (given.append(x), x)[1])
        assert torch.equal(given[0], model[:2](X) if wanted else model[0](X))


def test_a_kind_with_negative_outputs_needs_negative_levels() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    method = MethodConfig(name="ste", scale="max", activation_levels="uint4")
    assert why(quantize(model, Recipe(method), X)) == {"1": "puts out negative numbers, and its levels have none"}
    assert why(quantize(model, Recipe(method, [Rule("1", quantize=True)]), X)) == {"1": ""}
