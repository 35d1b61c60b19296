"""``prepare`` in loops as users write them; the oracle is ``QuantizedModule`` where it does the same."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from checkpointed import Blocks
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from metasched import (
    MetaschedError,
    MethodConfig,
    QuantizedModule,
    Recipe,
    SchedulePlayer,
    build_method,
    hand_coded,
    load,
    quantize,
)
from metasched.methods.spec import METHODS
from metasched.network.playing import Player
from metasched.network.prepare import prepare
from metasched.schedules.table import schedules_of

X, Y = torch.arange(80.0).reshape(10, 8).sin(), torch.arange(10) % 3
loss_of = nn.functional.cross_entropy


def mlp(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def prepared(name: str = "inq", steps: int = 10, model: nn.Module | None = None, **method: Any) -> Any:
    config = MethodConfig(**({"name": name, "scale": "max"} | method))
    schedule = None if name in ("ste", "widths") else next(iter(schedules_of(config).values()))
    model = mlp() if model is None else model
    return prepare(model, config, X.to(next(model.parameters()).dtype), schedule, steps)


def train(module: Any, player: Player, optimizer: Any, steps: int = 1) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = loss_of(module(X), Y) + player.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        player.step()
        losses.append(loss.item())
    return losses


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.05)


METHOD_CASES: list[dict[str, Any]] = [
    *({"name": name} for name in sorted(METHODS) if name not in ("float", "dpq")),  # which has no layer here
    {"name": "joint", "forward": "random"},
    {"name": "ste", "scale": "learned", "activation_scale": "learned"},
]


@pytest.mark.parametrize("given", METHOD_CASES, ids=lambda given: "-".join(map(str, given.values())))
def test_it_computes_what_the_quantized_module_computes(given: dict[str, Any]) -> None:
    config = MethodConfig(**({"scale": "max"} | given))
    method = build_method(config)
    found = next(iter(schedules_of(config).values()), None)
    module, player = prepare(mlp(), config, X, found, 6)
    network = quantize(mlp(), Recipe(config), X)
    old_player = SchedulePlayer(found, 6, network.layers) if found is not None else None

    def row(step: int) -> Any:
        return {layer.name: {} for layer in network.layers} if old_player is None else old_player.at(step)

    # where weights are kept, they start as without controls
    neutral = {c.name: min(max(0.0, c.low), c.high) for c in method.controls}
    old = QuantizedModule(network, {layer.name: neutral for layer in network.layers}, example=X)
    one, two = adam(module), adam(old)
    for step in range(6):
        losses = loss_of(module(X), Y) + player.penalty(), loss_of(old(X, row(step), step), Y) + old.penalty()
        assert torch.equal(*losses)
        for optimizer, loss in zip((one, two), losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        player.step()
        old.settle()
        for name, p in old.module.named_parameters():
            assert torch.equal(dict(module.named_parameters())[name], p)
    assert torch.equal(module.eval()(X), old.deployed(X))
    hard = old.hardened()
    assert all(torch.equal(module.get_submodule(layer.name).weight, hard[layer.weight_key]) for layer in network.layers)


def test_resuming_goes_on_with_the_same_bits() -> None:
    for name in ("inq", "oscillation", "joint"):
        kinds = [prepared(name) for _ in range(2)]
        (module, player), (again, other) = kinds
        optimizer = adam(module)
        train(module, player, optimizer, 4)
        states = copy.deepcopy([part.state_dict() for part in (module, player, optimizer)])
        wanted = train(module, player, optimizer, 6)
        resumed = adam(again)
        for order in ((again, other, resumed), (other, resumed, again)):
            fresh = dict(zip((again, other, resumed), copy.deepcopy(states), strict=True))
            for part in order:
                part.load_state_dict(fresh[part])
            assert train(again, other, resumed, 6) == wanted, name
            assert all(torch.equal(t, again.state_dict()[k]) for k, t in module.state_dict().items())
    assert set(player.state_dict()) == {"step", "layers"} and player.position == 10


def test_states_of_other_layers_or_levels_are_refused() -> None:
    module, player = prepared("inq")
    for other, others_player in (prepared("inq", levels="int2"), prepared("inq", model=mlp(20))):
        with pytest.raises((MetaschedError, RuntimeError), match=r"other levels or scales|size mismatch"):
            other.load_state_dict(module.state_dict())
        with pytest.raises(MetaschedError, match="state_dict: is of other layers or levels than those of this network"):
            others_player.load_state_dict(player.state_dict())
    for state in ({}, {"step": 1}, {**player.state_dict(), "step": -1}, {**player.state_dict(), "step": True}):
        with pytest.raises(MetaschedError, match=r"^state_dict: must be"):
            player.load_state_dict(state)
    fewer, _ = prepare(mlp(), MethodConfig(name="inq", activation_levels=None), X, "inq_linear", 4)
    with pytest.raises(MetaschedError, match="other levels"):
        fewer.load_state_dict(module.state_dict())


@pytest.mark.parametrize("order", ["module first", "player first"])
def test_a_longer_total_never_thaws(order: str) -> None:
    module, player = prepared("inq", 10)
    train(module, player, adam(module), 6)
    frozen = module[0].weight_quantizer.frozen == 1
    was = module[0]._parameters["weight"][frozen].clone()
    longer, its_player = prepared("inq", 100)
    parts = [(longer, module), (its_player, player)]
    with pytest.warns(UserWarning, match="freeze_fraction of 0 falls.*stay frozen"):
        for part, saved in parts if order == "module first" else reversed(parts):
            part.load_state_dict(saved.state_dict())
        train(longer, its_player, adam(longer), 3)
    assert 0 < frozen.sum() < frozen.numel()
    assert torch.equal(longer[0]._parameters["weight"][frozen], was)
    assert bool((longer[0].weight_quantizer.frozen[frozen] == 1).all())


def test_pretrained_weights_are_kept_and_those_loaded_later_get_their_scales() -> None:
    model = mlp()
    module, player = prepare(model, MethodConfig(name="ste"), X)  # whose own scale would draw new weights
    for name, p in model.named_parameters():
        assert torch.equal(module.get_submodule(name.rpartition(".")[0])._parameters[name.rpartition(".")[2]], p)
    module.load_state_dict({name: 0.01 * t for name, t in model.state_dict().items()})
    expected, _ = prepare(module_of(model, 0.01), MethodConfig(name="ste"), X)
    assert all(torch.equal(t, expected.state_dict()[name]) for name, t in module.state_dict().items())
    train(module, player, adam(module))
    before = module[0].weight_quantizer.scale.clone()
    module.load_state_dict(model.state_dict())
    assert torch.equal(module[0].weight_quantizer.scale, before)  # fixed since the first step


def module_of(model: nn.Module, factor: float) -> nn.Module:
    copied = copy.deepcopy(model)
    copied.load_state_dict({name: factor * t for name, t in model.state_dict().items()})
    return copied


def test_learned_scales_of_activations_follow_weights_that_are_loaded() -> None:
    method = MethodConfig(name="ste", scale="learned", activation_scale="learned")
    module, _ = prepare(mlp(), method, X)
    module.load_state_dict({name: 100 * t for name, t in mlp().state_dict().items()})
    module(X)
    expected, _ = prepare(module_of(mlp(), 100.0), method, X)
    expected(X)
    for name, t in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], t)


def test_a_layer_that_starts_at_zero_leaves_it() -> None:
    model = mlp()
    nn.init.zeros_(model[2].weight)
    with pytest.warns(UserWarning, match="model: 2: all weights are 0"):
        module, player = prepare(model, MethodConfig(name="ste", scale="max", activation_levels=None), X)
    train(module, player, adam(module), 5)
    weight, hard = module[2]._parameters["weight"].detach(), module.eval()[2].weight.detach()
    assert float((hard - weight).square().mean()) < 0.5 * float(weight.square().mean())


def test_several_passes_and_closures_are_one_step() -> None:
    for build in (
        lambda m: torch.optim.LBFGS(m.parameters(), max_iter=3),
        lambda m: torch.optim.SGD(m.parameters(), 0.1),
    ):
        module, player = prepared("inq", 2, activation_levels=None)
        train(module, player, adam(module))  # all is frozen in the step that follows
        was = {i: module[i]._parameters["weight"].clone() for i in (0, 2)}
        optimizer: Any = build(module)

        def closure(module: Any = module, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(module(X), Y)
            loss.backward()
            return loss

        module(X)
        optimizer.step(closure)
        with torch.no_grad():
            module(X)
        player.step()
        assert all(torch.equal(module[i]._parameters["weight"], w) for i, w in was.items())
        assert not torch.equal(module[4].weight, mlp()[4].weight)


def test_sharpness_aware_steps() -> None:
    module, player = prepared("inq", 2, activation_levels=None)
    train(module, player, adam(module))
    was, optimizer = module[0]._parameters["weight"].clone(), torch.optim.SGD(module.parameters(), 0.1)
    loss_of(module(X), Y).backward()
    with torch.no_grad():
        shifts = [0.05 * p.grad if p.grad is not None else torch.zeros_like(p) for p in module.parameters()]
        torch._foreach_add_(list(module.parameters()), shifts)
    optimizer.zero_grad()
    loss_of(module(X), Y).backward()
    with torch.no_grad():
        torch._foreach_sub_(list(module.parameters()), shifts)
    optimizer.step()
    player.step()
    assert torch.equal(module[0]._parameters["weight"], was)


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    module, player = prepared("joint", forward="random", activation_levels=None)
    other, other_player = prepared("joint", forward="random", activation_levels=None)
    for x, y in zip(X.split(5), Y.split(5), strict=True):
        (loss_of(module(x), y) / 2).backward()
    loss_of(other(X), Y).backward()
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    nn.utils.clip_grad_norm_(module.parameters(), 1e-3)
    assert nn.utils.get_total_norm([p.grad for p in module.parameters()]) <= 1.001e-3
    player.step()
    assert (player.position, other_player.position) == (1, 0)


@pytest.mark.parametrize("name", ["inq", "joint", "ste"])
def test_autocast_and_scaled_gradients(name: str) -> None:
    module, player = prepared(name, model=mlp().float(), scale="learned" if name == "ste" else "max")
    optimizer, scaler = torch.optim.SGD(module.parameters(), 0.05), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x = X.float()
    for step in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
            loss = loss_of(out, Y)
        assert out.dtype == torch.bfloat16
        if step == 2:
            loss = loss * float("inf")  # this batch is skipped
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        taken = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= taken:
            player.step()
    assert player.position == 3
    assert all(bool(p.isfinite().all()) for p in module.parameters())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "method", [{"name": "joint", "forward": "random"}, {"name": "inq"}, {"name": "ste", "activation_scale": "learned"}]
)
def test_checkpointing_gives_the_same_gradients(method: dict[str, Any], reentrant: bool) -> None:
    found = []
    for saving in (None, reentrant):
        module, player = prepared(model=Blocks(saving), **method)
        loss_of(module(X), Y).backward()
        player.step()
        loss_of(module(X), Y).backward()
        found.append({name: p.grad for name, p in module.named_parameters()})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-12, atol=1e-12)


def test_copies_and_pickles_go_on_alike() -> None:
    module, player = prepared("inq")
    optimizer = adam(module)
    train(module, player, optimizer, 3)
    copies = [copy.deepcopy((module, player, optimizer)), pickle.loads(pickle.dumps((module, player, optimizer)))]
    wanted = train(module, player, optimizer, 4)
    assert all(train(*other, 4) == wanted for other in copies)
    alone = copy.deepcopy(module)
    assert torch.equal(alone(X), module(X)) and isinstance(alone[0], nn.Linear)


def test_averaged_weights_are_hard_in_eval_mode() -> None:
    module, player = prepared("inq", activation_levels=None)
    averaged = AveragedModel(module)
    optimizer = adam(module)
    for _ in range(3):
        train(module, player, optimizer)
        averaged.update_parameters(module)
    own = torch.stack([averaged.module[0]._parameters["weight"], module[0]._parameters["weight"]])
    assert not torch.equal(own[0], own[1])
    assert len(averaged.eval().module[0].weight.unique()) <= 3


def test_functional_calls_and_casts() -> None:
    module, player = prepared("inq")
    train(module, player, adam(module), 5)
    params = {name: p.detach() for name, p in module.named_parameters()}
    assert torch.equal(functional_call(module, params, (X,)), module(X))
    half = copy.deepcopy(module).to(torch.bfloat16)
    assert half(X.bfloat16()).dtype == torch.bfloat16
    assert half[0].weight_quantizer.controls["freeze_fraction"].dtype == torch.float64


def test_bad_input_is_one_line() -> None:
    config = MethodConfig(name="ana")
    with pytest.raises(
        MetaschedError, match=r"^schedule: is not given, and weight_noise, activation_noise has no value"
    ):
        prepare(mlp(), config, X)
    with pytest.raises(
        MetaschedError, match=r"^schedule: lacks weight_noise, which the method reads; it has freeze_frac"
    ):
        prepare(mlp(), config, X, "inq_linear")
    with pytest.raises(MetaschedError, match="'inq_lin' is not the name of a schedule"):
        prepare(mlp(), config, X, "inq_lin")
    with pytest.raises(MetaschedError, match=r"^total_steps: must be at least 1"):
        prepare(mlp(), MethodConfig(name="inq"), X, "inq_linear", 0)
    _, player = prepared("inq")
    with pytest.raises(MetaschedError, match="did you mean"):
        player.value("freeze_fractoin", "0")
    assert player.value("freeze_fraction", "2") == 0


def test_a_schedule_from_scratch_on_kept_weights_says_so_once() -> None:
    schedule = load("digits_inq")
    assert schedule.method.scale == "unit"
    with pytest.warns(UserWarning, match="learned from scratch") as seen:
        warnings.filterwarnings("ignore", "layers: the schedule has layers of kind conv only")
        prepare(mlp(), schedule.method, X, schedule, 10)
    assert len([w for w in seen if "from scratch" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(mlp(), MethodConfig(name="inq"), X, hand_coded("inq")["inq_linear"], 10)


def test_no_schedule_is_the_floor() -> None:
    _, player = prepare(mlp(), MethodConfig(name="joint", of="widths+inq", scale="learned"), X, None, 5)
    for step in range(5):
        assert player.value("freeze_fraction", "0") == (1.0 if step == 4 else 0.0)
        assert player.value("weight_width", "0") == 1.0
        player.step()
