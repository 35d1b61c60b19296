"""Situations that users bring to ``prepare`` and ``convert``: what is changed before, within and after them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from metasched import MetaschedError, MethodConfig, QuantizedModule, build_method, convert, inspect, prepare, quantize

X = torch.arange(80.0).reshape(10, 8).sin()
STE = MethodConfig(name="ste", scale="max")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def inputs_of(layer: nn.Module) -> list[torch.Tensor]:
    values: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda m, given: values.append(given[0]))
    return values


@pytest.mark.parametrize("door", [prepare, quantize, lambda model, *args: inspect(model, *args)])
def test_what_is_quantized_already_is_refused(door: Callable[..., Any]) -> None:
    method = build_method(STE)
    network = quantize(mlp(), method, X)
    for model in (prepare(mlp(), STE, X)[0], QuantizedModule(network, {layer.name: {} for layer in network.layers})):
        with pytest.raises(MetaschedError, match=r"^model: is quantized already \("):
            door(model, method, X)
    door(convert(prepare(mlp(), STE, X)[0]), method, X)


def test_pruning_and_parametrizing_a_quantized_weight_is_refused() -> None:
    for change in (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        parametrizations.weight_norm,
        parametrizations.orthogonal,
    ):
        module, _ = prepare(mlp(), STE, X)
        with pytest.raises(MetaschedError, match=r"cannot be pruned or parametrized \(weight\) once it is quantized"):
            change(module[2])
    prune.l1_unstructured(module[4], "weight", 0.5)  # which is not quantized
    assert sum(w == 0 for w in module[4].weight.flatten().tolist()) == 24  # pyright: ignore


def test_weights_that_hooks_compute_are_converted_too() -> None:
    model = mlp()
    nn.utils.spectral_norm(model[4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, _ = prepare(model, MethodConfig(name="ste", activation_levels=None), X)
    module(X)
    plain = convert(module)
    assert torch.equal(plain(X), module.eval()(X))


class Saving(nn.Module):
    """Checkpoints one of its own methods, which calls functions, or modules twice."""

    def __init__(self, reentrant: bool, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.reentrant, self.act = reentrant, act

    def block(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.second(self.act(self.first(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(checkpoint(self.block, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("act", [nn.functional.relu, nn.ReLU()], ids=["function", "module"])
def test_calls_that_a_second_run_cannot_tell_apart_are_refused(reentrant: bool, act: Any) -> None:
    x = X.clone().requires_grad_()
    module, _ = prepare(Saving(reentrant, act), STE, x)
    with pytest.raises(MetaschedError, match=r"^model: calls (relu\(\)|act) in a function that is checkpointed"):
        module(x)
    module.block = module.first.forward  # pyright: ignore  # what has no activations may be checkpointed
    module(x).sum().backward()
    with torch.no_grad():
        prepare(mlp(), STE, X)[0](X)


def test_transformer_layers_with_activations_of_any_form_are_converted() -> None:
    x = X.reshape(2, 5, 8)
    for act in ("relu", "gelu", nn.functional.gelu, nn.ReLU()):
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=act, batch_first=True)
        model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))
        module, _ = prepare(model, STE, x)
        plain = convert(module)
        assert torch.equal(plain(x), module.eval()(x))
        values = inputs_of(plain.get_submodule("0.layers.1.linear2"))
        with torch.no_grad():  # where torch would take its fused path
            torch.testing.assert_close(plain(x), module(x))
        assert len(values[-1].unique()) <= 3


@pytest.mark.parametrize("act", ["gelu", nn.GELU(), nn.ReLU()], ids=str)
def test_copies_of_transformer_decoders_keep_their_activations(act: Any) -> None:
    x, memory = X.reshape(2, 5, 8), X.flip(0).reshape(2, 5, 8)[:, :3]
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, activation=act, batch_first=True)
    free, _ = prepare(
        layer, MethodConfig(name="inq", scale="max", activation_levels=None), (x, memory), "inq_linear", 3
    )
    assert torch.equal(free(x, memory), layer(x, memory))
    module, _ = prepare(layer, STE, (x, memory))
    module.eval()
    for other in (copy.deepcopy(module), convert(module), copy.deepcopy(convert(module))):
        values = inputs_of(other.get_submodule("linear2"))
        assert torch.equal(other(x, memory), module(x, memory))
        assert len(values[0].unique()) <= 3


@pytest.mark.parametrize("how", ["copy", "data"])
@pytest.mark.parametrize("scale", ["least_squares", "learned"])
def test_scales_fit_weights_that_are_written_after_preparing(how: str, scale: str) -> None:
    config = MethodConfig(name="ste", scale=scale, activation_levels=None)
    source = mlp()
    with torch.no_grad():
        for p in source.parameters():
            p.mul_(9)
    wanted, _ = prepare(source, config, X)
    module, player = prepare(mlp(), config, X)
    with torch.no_grad():
        for p, given in zip(module.parameters(), wanted.parameters(), strict=True):
            if p.dim() == 2 or p.shape == given.shape != (1,):
                p.copy_(given) if how == "copy" else setattr(p, "data", given.data.clone())
    assert torch.equal(module(X), wanted(X))
    player.step()
    assert torch.equal(module.eval()(X), wanted.eval()(X))


def test_weights_that_were_not_written_keep_their_scales() -> None:
    module: Any = prepare(mlp(), STE, X)[0]
    scale = module[0].weight_quantizer.scale.fill_(0.3)
    module(X)
    assert torch.equal(scale, torch.full_like(scale, 0.3))


def test_norms_in_eval_mode_are_named() -> None:
    model: Any = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    model[1].eval()
    with pytest.warns(UserWarning, match="^model: 1: in eval mode, and stays there until train"):
        module, _ = prepare(model, STE, X)
    was = module[1].running_mean.clone()
    module(X)
    assert torch.equal(module[1].running_mean, was)


def test_wrong_arguments_are_one_line() -> None:
    given: Any
    for given, match in (
        ((mlp(), STE, None), "^example: is a NoneType"),
        ((mlp(), STE, [X]), "^example: is a list"),
        ((mlp(), 42, X), "^recipe: has a int for a method"),
        ((len, STE, X), "^model: is a builtin_function"),
        ((mlp(), STE, X, 42), "^schedule: is a int"),
    ):
        with pytest.raises(MetaschedError, match=match):
            prepare(*given)
    with pytest.raises(MetaschedError, match=r"^convert: the module has nothing"):
        convert(prepare(mlp(), STE, X))  # pyright: ignore


def test_a_module_of_torch_jit_is_refused_in_a_line() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        traced = torch.jit.trace(mlp(), X)
    for model, where in ((traced, "model"), (nn.Sequential(nn.Linear(8, 8), traced), r"model\.1")):
        with pytest.raises(MetaschedError, match=rf"^{where}: is a ScriptModule of torch.jit"):
            prepare(model, STE, X)


def test_complex_layers_stay_in_float() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.waves, self.body = nn.Linear(8, 8, dtype=torch.complex128), mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(self.waves(x.to(torch.complex128)).abs())

    with pytest.warns(match=r"stay in float: waves \(Linear\): its numbers are complex128"):
        module, _ = prepare(Net(), STE, X)
    assert module(X).shape == (10, 3)
    assert [t for t in module.state_dict() if t.startswith("body.2.weight_quantizer")]
    only = nn.Sequential(nn.Linear(8, 8, dtype=torch.complex128), nn.Linear(8, 8, dtype=torch.complex128))
    with pytest.raises(MetaschedError, match=r"no layer left to quantize .*; give one whose layers can be quantized"):
        prepare(only, STE, X.to(torch.complex128))


def test_a_network_that_branches_is_refused_without_graphs_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.experts = nn.Linear(8, 8), nn.ModuleList(nn.Linear(8, 3) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            return self.experts[int(x.sum()) % 2](torch.relu(x))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, _ = prepare(Net(), MethodConfig(name="ste", scale="max"), X)
        capfd.readouterr()
        with pytest.raises(MetaschedError, match=r"nor torch\.export"):
            convert(module)
    assert "".join(capfd.readouterr()) == ""
