"""The optimizers that we register with higher: equal to torch.optim and to the pure rules, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metasched.core.errors import MetaschedError
from metasched.engines.higher_optimizers import DIFFERENTIABLE, differentiable, higher, monkeypatch, refuse
from metasched.training.optimizers import OPTIMIZERS

TORCH = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
CASES = [
    *[("sgd", dict(lr=0.05, momentum=m, weight_decay=d)) for m in (0.0, 0.9) for d in (0.0, 0.05)],
    *[
        (name, dict(lr=0.02, betas=(0.9, 0.99), eps=eps, weight_decay=d))
        for name in ("adam", "adamw")
        for eps in (1e-8, 1e-3)
        for d in (0.0, 0.05)
    ],
]
IDS = [f"{name}-{list(options.values())}" for name, options in CASES]
NUM_STEPS = 20


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))


def data(num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(num_steps, 16, 6, generator=generator), torch.randn(num_steps, 16, 3, generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    for one_x, one_y in zip(x, y, strict=True):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(one_x), one_y).backward()
        optimizer.step()


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_equals_torch_optim_from_a_warm_start(name, options):
    model, (x, y) = network(), data(50)
    optimizer = TORCH[name](model.parameters(), **options)
    train(model, optimizer, x[:5], y[:5])
    fmodel = monkeypatch(model, copy_initial_weights=False)
    stepper = differentiable(optimizer, model.parameters(), track_higher_grads=False)
    params = list(fmodel.parameters())
    for t in range(5, 50):
        params = stepper.step(nn.functional.mse_loss(fmodel(x[t], params=params), y[t]), params=params)
    train(model, optimizer, x[5:], y[5:])
    for ours, theirs in zip(params, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_hypergradients_equal_the_pure_path_with_weights_changed_after_each_step(name, options):
    model, (x, y) = network(), data(NUM_STEPS + 1)
    rule = OPTIMIZERS[name].rule()
    flat = {**options, **dict(zip(("beta1", "beta2"), options.get("betas", ()), strict=False))}
    values = {k: torch.full((NUM_STEPS,), flat[k], requires_grad=True) for k in rule.hyperparameters}
    gate = torch.full((NUM_STEPS,), 0.3, requires_grad=True)  # a soft freeze of the first layer

    def freeze(old: torch.Tensor, proposed: torch.Tensor, t: int) -> torch.Tensor:
        return proposed + gate[t] * (old - proposed)

    fmodel = monkeypatch(model, copy_initial_weights=False, track_higher_grads=True)
    stepper = differentiable(TORCH[name](model.parameters(), **options), model.parameters())
    params = list(fmodel.parameters())
    for t in range(NUM_STEPS):
        loss = nn.functional.mse_loss(fmodel(x[t], params=params), y[t])
        override: dict[str, list[Any]] = {k: [v[t]] for k, v in values.items() if not k.startswith("beta")}
        if "beta1" in values:
            override["betas"] = [(values["beta1"][t], values["beta2"][t])]
        proposed = list(stepper.step(loss, params=params, override=override))
        params = [freeze(params[0], proposed[0], t), *proposed[1:]]
    loss = nn.functional.mse_loss(fmodel(x[-1], params=params), y[-1])
    inputs = [*values.values(), gate, *model.parameters()]
    through_higher = torch.autograd.grad(loss, inputs)

    named: dict[str, torch.Tensor] = dict(model.named_parameters())
    state = rule.init(named)
    for t in range(NUM_STEPS):
        inner = nn.functional.mse_loss(functional_call(model, named, (x[t],)), y[t])
        grads = dict(zip(named, torch.autograd.grad(inner, list(named.values()), create_graph=True), strict=True))
        new, state = rule.update(named, grads, state, {k: v[t] for k, v in values.items()})
        named = {**new, "0.weight": freeze(named["0.weight"], new["0.weight"], t)}
    pure_loss = nn.functional.mse_loss(functional_call(model, named, (x[-1],)), y[-1])
    assert loss.item() == pytest.approx(pure_loss.item(), rel=1e-12)
    for ours, expected in zip(through_higher, torch.autograd.grad(pure_loss, inputs), strict=True):
        assert expected.norm() > 0
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(TORCH))
def test_higher_itself_uses_our_classes(name):
    model, (x, y) = network(), data(3)
    optimizer = TORCH[name](model.parameters(), lr=0.1, weight_decay=0.01)
    weight_decay = torch.tensor(0.0, requires_grad=True)
    with higher.innerloop_ctx(model, optimizer, override={"weight_decay": [weight_decay]}) as (fmodel, stepper):
        assert type(stepper) is DIFFERENTIABLE[TORCH[name]]
        for t in range(2):
            stepper.step(nn.functional.mse_loss(fmodel(x[t]), y[t]))
        (gradient,) = torch.autograd.grad(nn.functional.mse_loss(fmodel(x[2]), y[2]), weight_decay)
    assert gradient.isfinite() and gradient != 0


def test_parameter_groups_keep_their_own_options():
    model, (x, y) = network(), data(10)
    groups = [
        {"params": model[2].parameters(), "lr": 0.01, "weight_decay": 0.1},
        {"params": model[0].parameters(), "lr": 0.05, "betas": (0.5, 0.9)},
    ]
    optimizer = torch.optim.Adam(groups)
    fmodel = monkeypatch(model)
    stepper = differentiable(optimizer, model.parameters(), fmodel=fmodel)
    for t in range(10):
        stepper.step(nn.functional.mse_loss(fmodel(x[t]), y[t]))
    train(model, optimizer, x, y)
    for ours, theirs in zip(fmodel.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_without_tracking_neither_weights_nor_state_keep_a_graph():
    model, (x, y) = network(), data(2)
    stepper = differentiable(
        torch.optim.SGD(model.parameters(), momentum=0.9), model.parameters(), track_higher_grads=False
    )
    fmodel = monkeypatch(model, track_higher_grads=False)
    params = list(fmodel.parameters())
    momentum = torch.tensor(0.5, requires_grad=True)
    for t in range(2):
        loss = nn.functional.mse_loss(fmodel(x[t], params=params), y[t])
        params = stepper.step(loss, params=params, override={"momentum": [momentum]})
    assert all(p.grad_fn is None for p in params)
    assert isinstance(stepper, DIFFERENTIABLE[torch.optim.SGD])
    assert all(s.grad_fn is None for s in stepper._states[0].values())


class Own(torch.optim.SGD):
    """A subclass, whose step could be anything."""


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda p: Own(p), "optimizer: Own has no exact differentiable form; use torch.optim's SGD, Adam, AdamW"),
        (lambda p: torch.optim.RMSprop(p), "optimizer: RMSprop has no exact"),
        (lambda p: torch.optim.SGD(p, maximize=True), "optimizer.param_groups[0].maximize: maximize=True is not"),
        (lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True), "optimizer.param_groups[0].nesterov: "),
        (lambda p: torch.optim.SGD(p, momentum=0.9, dampening=0.1), "optimizer.param_groups[0].dampening: "),
        (lambda p: torch.optim.SGD(p, fused=True), "optimizer.param_groups[0].fused: "),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "optimizer.param_groups[0].amsgrad: "),
        (lambda p: torch.optim.AdamW(p, capturable=True), "optimizer.param_groups[0].capturable: "),
        (lambda p: torch.optim.Adam(p, decoupled_weight_decay=True), "use torch.optim.AdamW"),
        (lambda p: torch.optim.SGD([torch.ones(1, requires_grad=True)]), "optimizer.param_groups[0].params: holds"),
    ],
)
def test_refuses_an_optimizer(make, line):
    model = network()
    with pytest.raises(MetaschedError) as caught:
        refuse(model, make(list(model.parameters())))
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["maximize", "amsgrad"])
def test_higher_cannot_be_asked_for_it_either(option):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.param_groups[0][option] = True
    with pytest.raises(MetaschedError, match=option):
        higher.get_diff_optim(optimizer, model.parameters())
    with pytest.raises(MetaschedError, match=option):
        differentiable(optimizer, model.parameters())


def test_refuses_an_override_that_would_do_nothing():
    model, (x, y) = network(), data(1)
    stepper = differentiable(torch.optim.SGD(model.parameters()), model.parameters())
    params = list(model.parameters())
    with pytest.raises(MetaschedError, match="override: unknown name 'moment'; did you mean 'momentum'"):
        stepper.step(nn.functional.mse_loss(model(x[0]), y[0]), params=params, override={"moment": [0.5]})


def test_refuses_state_of_unequal_age():
    model, (x, y) = network(), data(2)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, x[:1], y[:1])
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x[1]), y[1]).backward()
    model.get_parameter("0.weight").grad = None
    optimizer.step()
    stepper = differentiable(optimizer, model.parameters())
    with pytest.raises(MetaschedError, match=r"optimizer.state: .* different numbers of steps \(1, 2\)"):
        stepper.step(nn.functional.mse_loss(model(x[1]), y[1]), params=list(model.parameters()))


def old_weight_norm(model: nn.Sequential) -> None:
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(model[0])


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda m: m[0].register_forward_hook(lambda *_: None), "model.0: its hooks would be ignored"),
        (lambda m: m[2].register_forward_pre_hook(lambda *_: None), "model.2: its hooks would be ignored"),
        (lambda m: m[2].register_full_backward_hook(lambda *_: None), "model.2: its hooks would be ignored"),
        (lambda m: m.register_forward_hook(lambda *_: None), "model: its hooks would be ignored"),
        (lambda m: m[0].weight.register_hook(lambda g: 2 * g), "model.0.weight: its gradient hooks"),
        (old_weight_norm, "model.0: torch.nn.utils.weight_norm would"),
        (lambda m: torch.nn.utils.spectral_norm(m[0]), "use torch.nn.utils.parametrizations.spectral_norm"),
        (lambda m: setattr(m[0], "forward", m[0].forward), "model.0: its own or compiled forward"),
        (lambda m: m[0].compile(backend="eager"), "model.0: its own or compiled forward"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_refuses_a_model(spoil, line):
    model = network()
    refuse(model, torch.optim.SGD(model.parameters()))
    spoil(model)
    with pytest.raises(MetaschedError) as caught:
        refuse(model, torch.optim.SGD(model.parameters()))
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_refuses_hooks_of_the_optimizer():
    model = network()
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.register_step_post_hook(lambda *_: None)
    with pytest.raises(MetaschedError, match="optimizer: its step hooks"):
        refuse(model, optimizer)


def test_what_replaces_the_refused_is_accepted_and_differentiable():
    model, (x, y) = network(), data(2)
    torch.nn.utils.parametrizations.weight_norm(model[0])
    optimizer = torch.optim.SGD(model.parameters())
    refuse(model, optimizer)
    fmodel = monkeypatch(model, copy_initial_weights=False)
    lr = torch.tensor(0.1, requires_grad=True)
    stepper = differentiable(optimizer, model.parameters())
    params = list(fmodel.parameters())
    params = stepper.step(nn.functional.mse_loss(fmodel(x[0], params=params), y[0]), params, override={"lr": [lr]})
    loss = nn.functional.mse_loss(fmodel(x[1], params=params), y[1])
    gradients = torch.autograd.grad(loss, [lr, *model.parameters()])
    assert all(g.abs().sum() > 0 for g in gradients)


def test_import_raises_no_warning_where_warnings_are_errors(tmp_path: Path):
    # Without its cache Python compiles higher's source anew, which is when it warns.
    code = (
        f"import sys, torch, warnings; sys.pycache_prefix = {str(tmp_path)!r}; warnings.simplefilter('error');"
        "import metasched.engines.higher_optimizers; print(warnings.filters[0][0])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["error"]  # and leaves the filters as they were
