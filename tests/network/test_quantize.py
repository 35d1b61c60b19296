"""What ``quantize`` chooses in each model, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.methods import build_method
from metasched.methods.base import Method, State, Values
from metasched.methods.config import MethodConfig
from metasched.methods.ste import STE
from metasched.models import build_model
from metasched.network.flat import rows
from metasched.network.quantize import quantize
from metasched.network.quantized import QuantizedNetwork
from metasched.network.sites import ActivationSite, activations

SHAPES = {
    "mlp": (1, 8, 8),
    "convnet": (1, 8, 8),
    "vgg7": (3, 16, 16),
    "vgg8": (3, 16, 16),
    "resnet20": (3, 8, 8),
}
ANA = build_method(MethodConfig(name="ana"))
WEIGHTS_ONLY = build_method(MethodConfig(name="inq", activation_levels=None))
WEIGHTED = {
    "mlp": ["linear1", "linear2", "linear3", "linear4"],
    "convnet": ["conv1", "conv2", "conv3", "linear"],
    "vgg7": ["conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "linear7", "linear8"],
    "vgg8": ["conv1", "conv2", "conv3", "conv4", "conv5", "linear6", "linear7", "linear8"],
    "resnet20": ["conv", *(f"blocks.{i}.conv{j}" for i in range(9) for j in (1, 2)), "linear"],
}
ACTIVATION_AFTER = {
    "mlp": {f"linear{i}": f"act{i}" for i in (1, 2, 3)},
    "convnet": {f"conv{i}": f"act{i}" for i in (1, 2, 3)},
    "vgg7": {**{f"conv{i}": f"act{i}" for i in range(1, 7)}, "linear7": "act7"},
    "vgg8": {**{f"conv{i}": f"act{i}" for i in range(1, 6)}, "linear6": "act6", "linear7": "act7"},
    "resnet20": {"conv": "act", **{f"blocks.{i}.conv{j}": f"blocks.{i}.act{j}" for i in range(9) for j in (1, 2)}},
}
models = pytest.mark.parametrize("name", SHAPES)
ends = pytest.mark.parametrize(("first", "last"), [(True, False), (True, True), (False, False), (False, True)])


def model_and_example(name: str) -> tuple[nn.Module, torch.Tensor]:
    return build_model(name, SHAPES[name], 10, 2), torch.randn(2, *SHAPES[name])


def wrap(name: str, method: Method = ANA, **options: bool) -> tuple[nn.Module, QuantizedNetwork]:
    model, example = model_and_example(name)
    return model, quantize(model, method, example, **options)


@ends
@models
def test_layers_in_the_order_of_the_data_flow(name: str, first: bool, last: bool) -> None:
    model, network = wrap(name, first=first, last=last)
    expected = WEIGHTED[name][0 if first else 1 :]
    expected = expected if last else expected[:-1]
    assert [layer.name for layer in network.layers] == expected
    assert [layer.depth for layer in network.layers] == [i / (len(expected) - 1) for i in range(len(expected))]
    for layer in network.layers:
        own = model.get_submodule(layer.name)
        assert isinstance(own, nn.Conv2d | nn.Linear)
        assert layer.kind == ("linear" if isinstance(own, nn.Linear) else "conv")
        fan_in = own.in_features if isinstance(own, nn.Linear) else own.in_channels * 9
        assert (layer.fan_in, layer.num_weights) == (fan_in, own.weight.numel())
        assert layer.bits == pytest.approx(1.584962500721156)
        assert layer.quantizes == ("weight+activation" if layer.name in ACTIVATION_AFTER[name] else "weight")


@ends
@models
def test_activations_of_the_chosen_layers_are_replaced_and_no_others(name: str, first: bool, last: bool) -> None:
    _, network = wrap(name, first=first, last=last)
    sites = {key: m.layer for key, m in network.module.named_modules() if isinstance(m, ActivationSite)}
    names = [layer.name for layer in network.layers]
    assert sites == {ACTIVATION_AFTER[name][n]: i for i, n in enumerate(names) if n in ACTIVATION_AFTER[name]}
    kept = sum(isinstance(m, nn.ReLU) for m in network.module.modules())
    assert kept + len(sites) == len(ACTIVATION_AFTER[name])


@models
def test_a_method_of_weights_leaves_the_activations(name: str) -> None:
    _, network = wrap(name, WEIGHTS_ONLY)
    assert not any(isinstance(m, ActivationSite) for m in network.module.modules())
    assert {layer.quantizes for layer in network.layers} == {"weight"}


@models
def test_the_original_model_stays_as_it_was(name: str) -> None:
    model, example = model_and_example(name)
    model.eval()
    before = copy.deepcopy(model)
    network = quantize(model, ANA, example)
    assert not model.training and network.module.training
    assert repr(model) == repr(before)
    assert not any(m._forward_hooks for m in (*model.modules(), *network.module.modules()))
    for key, value in before.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
        assert torch.equal(value, network.module.state_dict()[key])  # and no statistics were gathered
        assert value.numel() == 0 or network.module.state_dict()[key].data_ptr() != model.state_dict()[key].data_ptr()


@models
def test_without_quantizing_the_copy_computes_what_the_model_does(name: str) -> None:
    model, network = wrap(name, last=True)
    x = torch.randn(3, *SHAPES[name])
    params = {key: p.detach() for key, p in network.module.named_parameters()}
    with activations(lambda i, x: torch.relu(x)):
        assert torch.equal(network.call(network.buffers())(params, x), model(x))


def test_the_seen_weights_and_activations_are_the_methods() -> None:
    """The whole forward pass, written out for a two-layer network."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    method = build_method(MethodConfig(name="ana", noise="uniform", forward="expectation", scale="unit"))
    x = torch.randn(7, 4)
    network = quantize(model, method, x, last=True)
    noise = torch.tensor([0.5, 0.5])
    controls = {"weight_noise": noise, "activation_noise": noise, "noise_mean": torch.zeros(2)}
    params, state = network.initialize(dict(network.module.named_parameters()), controls, seed=3)
    state = network.prepare(params, state, controls, seed=3, step=0)
    run, penalty = network.model(network.call({}), params, state, controls, seed=3, step=0)
    found = run(x)
    w0, w1 = (params[f"{k}.weight"].clamp(-1, 1) for k in (0, 2))
    hidden = F.linear(x, w0, params["0.bias"]).clamp(-1, 1)
    assert torch.allclose(found, F.linear(hidden, w1, params["2.bias"]), rtol=0, atol=1e-14)
    assert penalty is None

    hardened = network.harden(params, state)
    assert set(hardened["0.weight"].unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert hardened["0.bias"] is params["0.bias"]
    hidden = F.linear(x, hardened["0.weight"], params["0.bias"])
    hidden = (hidden >= 0.5).double() - (hidden < -0.5).double()
    expected = F.linear(hidden, hardened["2.weight"], params["2.bias"])
    assert torch.equal(network.hardened_model(network.call({}), params, state)(x), expected)


def test_each_layer_reads_its_own_row_of_the_controls() -> None:
    controls = {"a": torch.arange(6.0).reshape(3, 2), "b": torch.ones(3, 2)}
    assert rows(controls, 1)["a"].tolist() == [2, 3]
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid())
    network = quantize(model, build_method(MethodConfig(name="joint")), torch.zeros(1, 4), last=True)
    row = {name: torch.zeros(2) for name in ("weight_noise", "activation_noise", "noise_mean")}
    row["freeze_fraction"] = torch.tensor([0.25, 0.75])
    params, state = network.initialize(dict(network.module.named_parameters()), row, seed=0)
    state = network.prepare(params, state, row, seed=0, step=0)
    assert [state[f"{k}/frozen"].mean().item() for k in (0, 2)] == [0.25, 0.75]
    assert not torch.equal(params["0.weight"], params["2.weight"])  # each layer has its own draws


@models
def test_describe_has_a_line_for_each_layer(name: str) -> None:
    _, network = wrap(name)
    lines = network.describe().splitlines()
    assert len(lines) == len(network.layers)
    layer = network.layers[0]
    assert lines[0] == (
        f"{layer.name}: {layer.kind}, {layer.num_weights} weights of 1.58 bits, quantizes weight+activation"
    )


def test_networks_can_be_pickled_to_a_worker() -> None:
    _, network = wrap("resnet20")
    copied = pickle.loads(pickle.dumps(network))
    assert copied.layers == network.layers and copied.method == network.method
    assert repr(copied.module) == repr(network.module)


class Shared(nn.Module):
    """One module in two places."""

    def __init__(self, *, shared: str) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(4, 4), nn.ReLU()
        self.second = self.first if shared == "first" else nn.Linear(4, 4)
        self.last_act = self.act if shared == "act" else nn.ReLU()
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last_act(self.second(self.act(self.first(x)))))


def test_a_layer_that_runs_twice_is_quantized_once() -> None:
    network = quantize(Shared(shared="first"), ANA, torch.zeros(2, 4))
    assert [layer.name for layer in network.layers] == ["first"]
    assert "last_act (ReLU): is the second activation of its layer" in network.floats
    network = quantize(Shared(shared="act"), ANA, torch.zeros(2, 4))
    assert [(layer.name, layer.quantizes) for layer in network.layers] == [
        ("first", "weight+activation"),
        ("second", "weight+activation"),
    ]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU()), {"last": True}),
        (nn.Sequential(nn.Linear(4, 2)), {}),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), {"first": False}),
    ],
)
def test_nothing_left_to_quantize_is_refused(model: nn.Module, options: dict[str, bool]) -> None:
    with pytest.raises(MetaschedError, match=r"^quantize: the model has no layer left to quantize; (set|give)"):
        quantize(model, ANA, torch.zeros(2, 4), **options)


def test_an_activation_belongs_to_the_layer_that_ran_last_before_it_and_to_one_only() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.GELU(), nn.Tanh(), nn.Linear(4, 2))
    network = quantize(model, ANA, torch.zeros(2, 4))
    kinds = [type(m) for m in network.module.children()]
    assert kinds == [nn.ReLU, nn.Linear, nn.BatchNorm1d, ActivationSite, nn.Tanh, nn.Linear]


def test_order_is_that_of_the_forward_pass_not_of_registration() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b, self.a = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.a(x)))

    network = quantize(Backwards(), ANA, torch.zeros(2, 4))
    assert [layer.name for layer in network.layers] == ["a", "b"]


def test_a_single_layer_is_refused() -> None:
    with pytest.raises(MetaschedError, match=r"^model: is a single layer.*Sequential"):
        quantize(nn.Linear(4, 2), ANA, torch.randn(2, 4), last=True)


def test_a_shared_weight_is_one_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    network = quantize(model, ANA, torch.randn(2, 4))
    assert [layer.name for layer in network.layers] == ["0"]
    row = {name: torch.zeros(1) for name in ("weight_noise", "activation_noise", "noise_mean")}
    params, state = network.initialize(dict(network.module.named_parameters()), row, seed=0)
    seen: list[torch.Tensor] = []
    for layer in (network.module[0], network.module[2]):  # type: ignore[index]
        layer.register_forward_hook(lambda m, i, o: seen.append(m.weight.detach()))
    network.hardened_model(network.call({}), params, state)(torch.randn(2, 4))
    assert torch.equal(*seen) and set(seen[0].unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_every_hook_draws_by_the_seed_the_step_and_the_place_of_its_layer() -> None:
    """INQ's random partition is drawn anew in ``prepare`` at each change: with the draw of step 0 it would stay."""
    drawn: list[tuple[str, Draw]] = []

    class Noting(STE):
        def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
            drawn.append(("initialize", draw))
            return super().initialize(w, controls, draw)

        def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
            drawn.append(("prepare", draw))
            return super().prepare(w, state, controls, draw)

        def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
            drawn.append(("weight", draw))
            return super().weight(w, state, controls, draw)

        def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
            drawn.append(("activation", draw))
            return super().activation(x, state, controls, draw)

        def update(
            self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
        ) -> tuple[torch.Tensor, State]:
            drawn.append(("update", draw))
            return super().update(w, proposed, state, controls, draw)

    method = build_method(MethodConfig(name="ste"))
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    network = quantize(model, Noting(**vars(method)), x := torch.randn(7, 4), last=True)
    params, state = network.initialize(dict(network.module.named_parameters()), {}, seed=3)
    state = network.prepare(params, state, {}, seed=3, step=5)
    run, _ = network.model(network.call({}), params, state, {}, seed=3, step=5)
    run(x)
    network.update(params, params, state, {}, seed=3, step=5)
    assert [draw for hook, draw in drawn if hook == "initialize"] == [Draw(3, 0, 0), Draw(3, 0, 1)]
    for hook in ("prepare", "weight", "update"):
        assert [draw for noted, draw in drawn if noted == hook] == [Draw(3, 5, 0), Draw(3, 5, 1)]
    assert [draw for noted, draw in drawn if noted == "activation"] == [Draw(3, 5, 0)]


def test_a_random_partition_is_drawn_anew_where_the_fraction_changes() -> None:
    model, x = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3)), torch.randn(2, 20)
    network = quantize(model, build_method(MethodConfig(name="inq", partition="relaxation")), x)
    row = {"freeze_fraction": torch.tensor([0.5])}
    params, state = network.initialize(dict(network.module.named_parameters()), row, seed=3)
    for step in (1, 2):
        frozen = network.prepare(params, state, row, seed=3, step=step)["0/frozen"]
        order = Draw(3, step, 0).uniform("partition", params["0.weight"])
        assert torch.equal(frozen.bool(), order > order.flatten().sort().values[299])
