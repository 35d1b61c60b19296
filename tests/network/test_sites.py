"""What a site stands for: the layer that feeds it, and what stays in float with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from metasched import MetaschedError, MethodConfig, QuantizedModule, build_method
from metasched.network.quantize import quantize
from metasched.network.quantized import QuantizedNetwork
from metasched.network.sites import ActivationSite, activations

X = torch.linspace(-2, 2, 64).reshape(8, 8)


def wrap(model: nn.Module, example: Any = X, *, last: bool = False, **method: Any) -> QuantizedNetwork:
    return quantize(model, build_method(MethodConfig(**({"name": "ste", "scale": "max"} | method))), example, last=last)


def owners(network: QuantizedNetwork) -> dict[str, str]:
    """Name of each site -> the layer that it belongs to."""
    sites = {name: m.layer for name, m in network.module.named_modules() if isinstance(m, ActivationSite)}
    return {name: network.layers[i].name for name, i in sites.items()}


class Branches(nn.Module):
    """Both layers run before both activations."""

    def __init__(self, join: Callable[..., torch.Tensor], lose: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.of_a, self.of_b = nn.Linear(8, 8), nn.Linear(8, 8), nn.Tanh(), nn.Sigmoid()
        self.norm, self.head, self.join, self.lose = nn.LayerNorm(8), nn.Linear(8, 3), join, lose

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.norm(self.a(x)), self.b(x)
        if self.lose:
            a, b = (torch.tensor(t.tolist()) for t in (a, b))
        return self.head(self.join(self.of_a(a), self.of_b(b)))


def test_an_activation_belongs_to_the_layer_that_feeds_it() -> None:
    assert owners(wrap(Branches(torch.add))) == {"of_a": "a", "of_b": "b"}


def test_where_the_flow_is_lost_the_order_of_calls_stands_in() -> None:
    assert owners(wrap(Branches(torch.add, lose=True))) == {"of_a": "b"}


@pytest.mark.parametrize("join", [torch.mul, lambda a, b: a * b, lambda a, b: b.mul_(a)])
def test_a_gate_stays_in_float_and_is_named(join: Callable[..., torch.Tensor]) -> None:
    network = wrap(Branches(join))
    assert owners(network) == {"of_a": "a"}
    assert "in float: of_b (Sigmoid): is a gate" in network.describe()
    assert owners(wrap(Branches(lambda a, b: 0.5 * a + b * 2.0))) == {"of_a": "a", "of_b": "b"}  # no other tensor


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.Tanh(), nn.ReLU()])
def test_an_output_stays_in_float_and_is_named(end: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4), end, nn.Flatten())
    network = wrap(model, last=True)
    assert owners(network) == {"1": "0"}
    assert f"in float: 3 ({type(end).__name__}): is the output of the network" in network.describe()


class Heads(nn.Module):
    """Two outputs; the activation of the first one runs before the layer of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act, self.head, self.out, self.other = (
            *(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3), nn.Sigmoid()),
            nn.Linear(8, 3),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.act(self.body(x))
        return self.out(self.head(x)), self.other(x)


def test_the_first_of_two_outputs_stays_in_float() -> None:
    network = wrap(Heads(), last=True)
    assert owners(network) == {"act": "body"} and "out (Sigmoid): is the output" in network.describe()


class InPlace(nn.Module):
    view = False

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.a, self.act, self.b, self.head = nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Linear(8, 3)
        self.again = again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        y = self.act(h.view(-1)).view(8, 8) if self.view else self.act(h)
        return self.head(self.b(y) + (h if self.again else y))


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_an_activation_in_place_rewrites_what_is_used_again(again: bool, view: bool) -> None:
    model = InPlace(again)
    model.view = view
    network = wrap(model, name="inq", activation_levels="uint8", activation_scale=1 / 64)
    site = network.module.get_submodule("act")
    assert isinstance(site, ActivationSite) and site.rewrites == again
    params = {name: p.detach() for name, p in network.module.named_parameters()}
    with activations(lambda i, x: torch.relu(x)):
        assert torch.equal(network.call({})(params, X), model(X))
    module = QuantizedModule(network, {name: {"freeze_fraction": 0.0} for name in ("a", "b")})
    module(X, {name: {"freeze_fraction": 0.0} for name in ("a", "b")}, 0).sum().backward()
    assert module.module.get_parameter("a.weight").grad is not None


def test_an_activation_in_several_places_is_one_site() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.fc = nn.ReLU(), nn.Linear(8, 8)
            self.block = nn.Sequential(self.fc, self.act)
            self.unregistered = [self.act]
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.unregistered[0](self.fc(x)))

    network = wrap(Net())
    module = QuantizedModule(network, {"fc": {}})
    seen: list[torch.Tensor] = []
    module.module.get_submodule("head").register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    module.deployed(X)
    assert set(seen[0].flatten().tolist()) <= {-1.0, 0.0, 1.0}
    assert network.module.get_submodule("act") is network.module.get_submodule("block.1")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_the_fused_transformer_layer_does_not_go_around_its_site(whole: bool, masked: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=nn.ReLU(), batch_first=True)
    body = nn.TransformerEncoder(layer, 1) if whole else layer

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = body, nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = torch.tensor([[False, False, True]] * len(x)) if masked else None
            return self.head(self.body(x, src_key_padding_mask=mask)[:, :2])

    x = torch.linspace(-1, 1, 48).reshape(2, 3, 8)
    network = wrap(Net(), x)
    assert [layer.name.rpartition("self_attn")[2] for layer in network.layers[:2]] == [".in_proj_weight", ".out_proj"]
    module = QuantizedModule(network, {layer.name: {} for layer in network.layers})
    trained = module.train().deployed(x)
    torch.testing.assert_close(module.eval().deployed(x), trained)
    assert any(isinstance(m, ActivationSite) for m in network.module.modules())


class Mixed(nn.Module):
    """Kinds that are not quantized, functional activations, and a layer that the example does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc, self.act, self.up = nn.Embedding(5, 8), nn.Linear(8, 8), nn.PReLU(), nn.LSTM(8, 8)
        self.expert, self.deconv, self.head = nn.Linear(8, 8), nn.ConvTranspose1d(1, 1, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.act(self.fc(x)))
        x = self.deconv(self.up(x)[0][:, None])[:, 0].relu()
        return self.head(self.expert(x) if len(x) > 99 else x)


def test_what_stays_in_float_is_named() -> None:
    network = wrap(Mixed())
    said = "\n".join(network.floats)
    for name in (
        "up.weight_ih_l0 (LSTM): is of a type",
        "expert (Linear): is not run",
        "gelu() (GELU): is the second activation of its layer",
    ):
        assert name in said
    assert not any(name in said for name in ("table", "head", "deconv", "PReLU", "relu()"))
    with pytest.warns(UserWarning, match="stay in float: up.weight_ih_l0 .LSTM.*expert"):
        QuantizedModule(network, {name: {} for name in ("fc", "deconv")})
    assert "GELU" not in "".join(wrap(Mixed(), activation_levels=None).floats)  # activations are not asked for
    with pytest.raises(MetaschedError, match=r"no layer left to quantize \(in float: 0.weight_ih_l0 \(LSTM\)"):
        wrap(nn.Sequential(nn.LSTM(8, 8), Outputs(), nn.Linear(8, 3)), X)


def test_a_layer_tied_to_one_that_is_not_chosen_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    with pytest.raises(MetaschedError, match=r"^model\.0: shares its weight with 2, which is not quantized"):
        wrap(model)
    with pytest.raises(MetaschedError, match=r"^model\.used: shares its weight with unused"):
        wrap(Unused())


class Unused(nn.Module):
    """A layer whose weight is that of another one, which does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.unused.weight = self.used.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.used(x))


class Outputs(nn.Module):
    def forward(self, found: tuple[torch.Tensor, Any]) -> torch.Tensor:
        return found[0]


def test_a_computed_weight_is_one_line() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(MetaschedError, match=r"^model\.0: has a computed weight"):
        wrap(model)
    prune.remove(model[0], "weight")
    assert [layer.name for layer in wrap(model).layers] == ["0"]


def test_what_cannot_be_copied_is_one_line() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model.cache = [model(X)]  # type: ignore[assignment]
    with pytest.raises(MetaschedError, match=r"^model: cannot be copied: Only Tensors created explicitly"):
        wrap(model)


def test_the_example_leaves_buffers_as_they_were() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("added", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count = self.count + 1
            self.added += 1
            return self.head(self.fc(x))

    network = wrap(Counting())
    assert float(network.module.get_buffer("count")) == float(network.module.get_buffer("added")) == 0
