"""Loops as users write them: several passes a step, small dtypes, longer runs, other states, frozen parts."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checkpointed import Blocks
from torch import nn

from metasched import MetaschedError, MethodConfig, QuantizedModule, SchedulePlayer, build_method, hand_coded
from metasched.methods.spec import METHODS
from metasched.network.module import LayerValues
from metasched.network.quantize import quantize
from metasched.network.quantized import QuantizedNetwork

Build = Callable[[], nn.Module]


def mlp(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def wrap(model: nn.Module, name: str = "inq", **method: Any) -> QuantizedNetwork:
    return quantize(model, build_method(MethodConfig(**({"name": name, "scale": "max"} | method))), X.to(_dtype(model)))


def _dtype(model: nn.Module) -> torch.dtype:
    return model.get_parameter(next(n for n, p in model.named_parameters() if p.dim() > 1)).dtype


def rows(network: QuantizedNetwork, **values: float) -> LayerValues:
    given = {c.name: min(max(0.0, c.low), c.high) for c in network.method.controls} | values
    return {layer.name: dict(given) for layer in network.layers}


def inq(model: nn.Module | None = None, **method: Any) -> QuantizedModule:
    network = wrap(mlp() if model is None else model, activation_levels=None, **method)
    return QuantizedModule(network, rows(network))


X, Y = torch.arange(80.0).reshape(10, 8).sin(), torch.arange(10) % 3


def step(module: QuantizedModule, optimizer: torch.optim.Optimizer, fraction: float, number: int, extra: bool) -> None:
    controls = rows(module.network, freeze_fraction=fraction)
    nn.functional.cross_entropy(module(X, controls, number), Y).backward()
    optimizer.step()
    optimizer.zero_grad()
    if extra:
        with torch.no_grad():
            module(X, controls, number)
    module.settle()


def test_a_pass_for_a_log_before_settle_changes_nothing() -> None:
    plain, logged = inq(), inq()
    for module, extra in ((plain, False), (logged, True)):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.9)
        for number in range(6):
            step(module, optimizer, (number + 1) / 6, number, extra)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), logged.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("partition", ["magnitude", "random"])
def test_closures_do_not_move_what_was_frozen_before_the_step(partition: str) -> None:
    module = inq(partition=partition)
    optimizer = torch.optim.LBFGS(module.parameters(), lr=0.5, max_iter=4)
    weight = module.module.get_parameter("0.weight")
    for number in range(4):
        frozen, was = module.method_state()["0/frozen"] == 1, weight.detach().clone()
        controls = rows(module.network, freeze_fraction=(number + 1) / 5)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(X, controls, number), Y)  # noqa: B023
            loss.backward()
            return loss

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        module.settle()
        assert torch.equal(weight[frozen], was[frozen]) and not torch.equal(weight, was)


def test_a_pass_for_a_log_after_settle_does_not_begin_the_next_step() -> None:
    plain, logged = inq(), inq()
    for module, extra in ((plain, False), (logged, True)):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
        for number in range(4):
            step(module, optimizer, (number + 1) / 4, number, False)
            if extra and number < 3:
                module(X, rows(module.network, freeze_fraction=(number + 1) / 4), number)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), logged.state_dict().values(), strict=True)
    )
    assert bool((logged.method_state()["0/frozen"] == 1).all())


def test_a_load_forgets_the_step_that_was_begun() -> None:
    module = inq()
    module(X, rows(module.network, freeze_fraction=1.0), 0)
    module.module.load_state_dict({name: torch.ones_like(t) for name, t in module.module.state_dict().items()})
    module(X, rows(module.network, freeze_fraction=1.0), 0)
    module.settle()
    assert bool((module.module.get_parameter("0.weight") == 1).all())


@pytest.mark.parametrize("partition", ["magnitude", "random", "relaxation"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_share_that_was_asked_for_freezes_in_small_dtypes(dtype: torch.dtype, partition: str) -> None:
    model = nn.Sequential(nn.Linear(8, 9000), nn.ReLU(), nn.Linear(9000, 3)).to(dtype)
    model.register_parameter("codes", nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False))
    module = inq(model, partition=partition)
    for number, fraction in enumerate((0.251, 0.751, 0.999)):
        module(X.to(dtype), rows(module.network, freeze_fraction=fraction), number)
        module.settle()
        share = float((module.method_state()["0/frozen"] > 0).double().mean())
        assert share == pytest.approx(fraction, abs=1e-4)
    assert float(module.penalty()) == 0


@pytest.mark.parametrize("name", [n for n in sorted(METHODS) if not build_method(MethodConfig(name=n)).tables])
@pytest.mark.parametrize("first", [torch.bfloat16, torch.uint8])
def test_every_method_runs_beside_a_first_parameter_of_a_small_dtype(name: str, first: torch.dtype) -> None:
    model = mlp().to(torch.bfloat16) if first == torch.bfloat16 else mlp()
    if first == torch.uint8:
        holder = nn.Module()
        holder.codes = nn.Parameter(torch.zeros(3, dtype=first), requires_grad=False)
        model = nn.Sequential(nn.Identity(), *model.children())
        model[0] = _Passing(holder)
    method = build_method(MethodConfig(name=name))  # type: ignore[arg-type]
    x = X.to(next(model.parameters()).dtype if first == torch.bfloat16 else X.dtype)
    network = quantize(model, method, x)
    controls = rows(network)
    module = QuantizedModule(network, controls)
    loss = module(x, controls, 0).float().square().sum() + module.penalty()
    loss.backward()
    torch.optim.SGD([p for p in module.parameters() if p.is_floating_point()], lr=0.01).step()
    module.settle()
    assert bool(torch.isfinite(module.deployed(x)).all())


class _Passing(nn.Module):
    def __init__(self, holder: nn.Module) -> None:
        super().__init__()
        self.holder = holder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("partition", ["magnitude", "random"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_longer_run_keeps_frozen_what_is_frozen_and_says_so(fresh: bool, partition: str) -> None:
    module = inq(partition=partition)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    player = SchedulePlayer(hand_coded("inq")["inq_linear"], 20, module.network.layers)
    for number in range(10):
        step(module, optimizer, player.step()["0"]["freeze_fraction"], number, False)
    frozen, was = module.method_state()["0/frozen"] == 1, module.module.get_parameter("0.weight").detach().clone()
    if fresh:
        resumed = inq(partition=partition)
        resumed.load_state_dict(module.state_dict())
        module, optimizer = resumed, torch.optim.Adam(resumed.parameters(), lr=0.1)
    longer = SchedulePlayer(hand_coded("inq")["inq_linear"], 100, module.network.layers)
    longer.load_state_dict(player.state_dict())
    with pytest.warns(UserWarning, match="freeze_fraction of 0 falls from 0.4.* to 0.1.*stay frozen"):
        step(module, optimizer, longer.step()["0"]["freeze_fraction"], 10, False)
    step(module, optimizer, longer.step()["0"]["freeze_fraction"], 11, False)  # says it once
    assert torch.equal(module.method_state()["0/frozen"] == 1, frozen)
    assert torch.equal(module.module.get_parameter("0.weight")[frozen], was[frozen])


def test_a_state_of_other_layers_or_levels_is_refused_in_one_line() -> None:
    method = build_method(MethodConfig(name="inq", scale="max", activation_levels=None))
    one, two = mlp(), mlp()
    network = quantize(one, method, X)
    saved = QuantizedModule(network, rows(network)).state_dict()
    others = [
        quantize(two, method, X, first=False, last=True),
        quantize(two, build_method(MethodConfig(name="inq", scale="max", activation_levels=None, levels="int2")), X),
        quantize(two, build_method(MethodConfig(name="inq", scale="max")), X),
    ]
    for other in others:
        module = QuantizedModule(other, rows(other))
        before = {name: t.clone() for name, t in module.state_dict().items()}
        with pytest.raises(MetaschedError, match=r"^state_dict: is of other layers, levels or scales"):
            nn.Sequential(module).load_state_dict({f"0.{name}": t for name, t in saved.items()})
        assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_averaged_halved_and_earlier_states_are_loaded() -> None:
    module, other = inq(), inq()
    averaged = {n: t * 0.9999 + t * 0.0001 if t.is_floating_point() else t for n, t in module.state_dict().items()}
    other.load_state_dict(averaged)
    other.load_state_dict({name: t.half() for name, t in module.state_dict().items()})
    other.load_state_dict({name: t for name, t in module.state_dict().items() if name != "method_identity"})
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        copied.load_state_dict(module.state_dict())


@pytest.mark.parametrize("name", ["ana", "joint", "ste"])
def test_fixed_weights_are_not_drawn_anew(name: str) -> None:
    model = mlp()
    model.get_submodule("0").requires_grad_(False)
    network = wrap(model, name, scale="unit")
    with pytest.warns(UserWarning, match="model: 0: requires_grad is False: their weights are kept"):
        module = QuantizedModule(network, rows(network, **({"noise_mean": 0.2} if name != "ste" else {})))
    weight = model.get_parameter("0.weight")
    assert torch.equal(module.module.get_parameter("0.weight"), weight)
    assert not torch.equal(module.module.get_parameter("2.weight"), model.get_parameter("2.weight"))
    hard = module.hardened()["0.weight"]
    assert float((hard - weight).square().mean()) < 0.3 * float(weight.square().mean())
    module(X, rows(network), 0)
    module.settle()
    assert torch.equal(module.module.get_parameter("0.weight"), weight)


def test_a_frozen_normalization_stays_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    model[1].eval()
    network = wrap(model, "ste")
    with pytest.warns(UserWarning, match="model: 1: are in eval mode"):
        module = QuantizedModule(network, rows(network))
    for number in range(2):
        module.train()
        module(X + 3, rows(network), number)
    assert bool((module.module.get_buffer("1.running_mean") == 0).all()) and module.module.get_submodule("0").training
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = wrap(model.eval(), "ste")  # nothing is frozen in a model that is in eval mode as a whole
        module = QuantizedModule(network, rows(network))
    module(X + 3, rows(network), 0)
    assert bool((module.module.get_buffer("1.running_mean") != 0).all())


@pytest.mark.parametrize("scale", ["max", "least_squares", "unit", "learned"])
def test_scales_fit_weights_that_are_loaded_after_wrapping(scale: str) -> None:
    pretrained = {name: 0.05 * t for name, t in mlp().state_dict().items()}
    network = wrap(mlp(), "ste", scale=scale, activation_levels=None)
    modules = [QuantizedModule(network, rows(network)) for _ in range(2)]
    for module in modules:
        module.module.load_state_dict(pretrained)
    modules[0](X, rows(network), 0)
    for module in modules:
        weight, hard = pretrained["0.weight"], module.hardened()["0.weight"]
        assert float((hard - weight).square().mean()) < 0.5 * float(weight.square().mean())
    modules[0].settle()
    scale_of = modules[0].hardened()["0.weight"].unique()
    modules[0].module.load_state_dict({name: 9 * t for name, t in pretrained.items()})
    assert set(modules[0].hardened()["0.weight"].unique().tolist()) <= set(
        scale_of.tolist()
    )  # fixed since the first step


def test_a_scale_that_fits_is_kept() -> None:
    network = wrap(mlp(), "ste", scale="unit", activation_levels=None)
    trained = QuantizedModule(network, rows(network), seed=3)
    module = QuantizedModule(network, rows(network), seed=4)
    module.module.load_state_dict(trained.module.state_dict())
    assert set(module.hardened()["0.weight"].unique().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.equal(module.hardened()["0.weight"], trained.hardened()["0.weight"])


@pytest.mark.parametrize("scale", ["max", "learned"])
def test_a_layer_that_starts_at_zero_leaves_it(scale: str) -> None:
    model = mlp()
    nn.init.zeros_(model.get_parameter("2.weight"))
    network = wrap(model, "ste", scale=scale, activation_levels=None)
    with pytest.warns(UserWarning, match="model: 2: all weights are 0"):
        module = QuantizedModule(network, rows(network))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for number in range(5):
        nn.functional.cross_entropy(module(X, rows(network), number), Y).backward()
        optimizer.step()
        optimizer.zero_grad()
        module.settle()
    weight, hard = module.module.get_parameter("2.weight").detach(), module.hardened()["2.weight"]
    assert float((hard - weight).square().mean()) < 0.5 * float(weight.square().mean())


def test_a_channel_that_starts_at_zero_leaves_it() -> None:
    model = mlp()
    with torch.no_grad():
        model.get_parameter("2.weight")[3] = 0
    network = wrap(model, "ste", scale="max", granularity="channel", activation_levels=None)
    module = QuantizedModule(network, rows(network))
    others = module.method_state()["2/scale"].clone()
    with torch.no_grad():
        module(X, rows(network), 0)
        module.module.get_parameter("2.weight").add_(1e-3)
        module.settle()
    scale = module.method_state()["2/scale"]
    assert scale[3].item() == pytest.approx(1e-3) and torch.equal(scale[4:], others[4:])


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count = self.count + 1
        return self.head(self.a(x))


def test_buffers_that_a_pass_assigns_are_kept() -> None:
    network = wrap(_Counting(), "ste")
    module = QuantizedModule(network, rows(network))
    for number in range(3):
        module(X, rows(network), number)
    module.deployed(X)
    assert float(module.state_dict()["module.count"]) == 4


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "method", [{"name": "joint", "forward": "random"}, {"name": "inq"}, {"name": "ste", "scale": "learned"}]
)
def test_checkpointing_gives_the_same_gradients(method: dict[str, Any], reentrant: bool) -> None:
    found = []
    for saving in (None, reentrant):
        network = wrap(Blocks(saving), **method)
        values = {"freeze_fraction": 0.5, "weight_noise": 0.5, "activation_noise": 0.5}
        controls = rows(network, **{c.name: values.get(c.name, 0.0) for c in network.method.controls})
        module = QuantizedModule(network, controls)
        module.eval()
        module(X, controls, 2).square().sum().backward()
        module.train()
        for number in range(2):
            module(X, controls, number).square().sum().backward()
            own = {name: p.detach().clone() for name, p in module.module.named_parameters()}
            module.settle()
            assert all(torch.equal(p, own[name]) for name, p in module.module.named_parameters())
        found.append({name: p.grad for name, p in module.named_parameters()})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-12, atol=1e-12)


def test_a_site_outside_of_its_network_is_one_line() -> None:
    network = wrap(mlp(), "ste")
    module = QuantizedModule(network, rows(network))
    with pytest.raises(MetaschedError, match="runs outside of its quantized network; call the QuantizedModule"):
        module.module(X)


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.act(self.a(x) + self.b(y))
        return self.head(hidden if mask is None else hidden * mask)


def test_several_inputs_and_keywords() -> None:
    network = quantize(_Two(), build_method(MethodConfig(name="ste", scale="max")), (X, X))
    module, controls = QuantizedModule(network, rows(network)), rows(network)
    mask = (X > 0).to(X.dtype)
    wanted = module(X, 2 * X, controls, 0, mask=mask)
    assert torch.equal(wanted, module(X, controls=controls, step=0, y=2 * X, mask=mask))
    assert torch.equal(wanted, module(X, 2 * X, controls, step=0, mask=mask))
    assert torch.equal(wanted, module.deployed(X, y=2 * X, mask=mask))
    with pytest.raises(MetaschedError, match=r"^controls: or the step is not given; call module"):
        module(X)


class _TwoNames(nn.Module):
    """A layer and a normalization that are attributes and members of a Sequential, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.tied, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.block = nn.Sequential(self.fc, self.norm, nn.ReLU())
        self.tied.weight = self.fc.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.tied(self.block(x)))


def test_a_module_of_two_names_keeps_its_parameters() -> None:
    network = wrap(_TwoNames(), "inq")
    assert [layer.name for layer in network.layers] == ["fc"]
    module, controls = QuantizedModule(network, rows(network)), rows(network)
    before = {name: p for name, p in module.named_parameters()}
    for number in range(2):
        module(X, controls, number).square().sum().backward()
        module.settle()
        module.deployed(X)
    assert {name: id(p) for name, p in module.named_parameters()} == {name: id(p) for name, p in before.items()}
    assert all(p.grad is not None for p in before.values())
    assert float(module.module.get_buffer("norm.num_batches_tracked")) == 4
