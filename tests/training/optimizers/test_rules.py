"""The pure optimizers against torch.optim, finite differences and what the papers say of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from metasched.training.optimizers import OPTIMIZERS
from metasched.training.optimizers.adam import Adam
from metasched.training.optimizers.adamw import AdamW
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.optimizers.sgd import SGD

TORCH = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
CASES = [
    *[("sgd", dict(lr=0.05, momentum=m, weight_decay=d)) for m in (0.0, 0.9) for d in (0.0, 0.05)],
    *[
        (name, dict(lr=0.02, beta1=0.9, beta2=0.99, eps=eps, weight_decay=d))
        for name in ("adam", "adamw")
        for eps in (1e-8, 1e-3)
        for d in (0.0, 0.05)
    ],
]
NUM_STEPS = 20


def network(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 10), activation(), nn.Linear(10, 3))


def data(num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(num_steps, 16, 6, generator=generator), torch.randn(num_steps, 16, 3, generator=generator)


def torch_options(hyper: dict[str, float]) -> dict:
    options = {k: v for k, v in hyper.items() if not k.startswith("beta")}
    return {**options, "betas": (hyper["beta1"], hyper["beta2"])} if "beta1" in hyper else options


def unroll(name, model, x, y, hyper, create_graph=False):
    """Weights after len(x) steps; hyper: name -> a number for all steps or a tensor [T]."""
    params = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters()}
    rule = OPTIMIZERS[name].rule()
    state = rule.init(params)
    for t in range(len(x)):
        loss = nn.functional.mse_loss(functional_call(model, params, (x[t],)), y[t])
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=create_graph)
        now = {k: h[t] if isinstance(h, torch.Tensor) else h for k, h in hyper.items()}
        params, state = rule.update(params, dict(zip(params, grads, strict=True)), state, now)
        if not create_graph:
            params = {k: p.detach().requires_grad_() for k, p in params.items()}
            state = {k: s.detach() for k, s in state.items()}
    return params


def outer_loss(name, model, x, y, hyper, create_graph=False):
    params = unroll(name, model, x[:-1], y[:-1], hyper, create_graph)
    return nn.functional.mse_loss(functional_call(model, params, (x[-1],)), y[-1])


@pytest.mark.parametrize("as_tensors", [False, True], ids=["numbers", "tensors"])
@pytest.mark.parametrize(("name", "hyper"), CASES, ids=lambda v: v if isinstance(v, str) else str(list(v.values())))
def test_equals_torch_optim_over_50_steps(name, hyper, as_tensors):
    model, (x, y) = network(), data(50)
    given_hyper = {k: torch.full((50,), v, requires_grad=True) if as_tensors else v for k, v in hyper.items()}
    ours = unroll(name, model, x, y, given_hyper)

    optimizer = TORCH[name](model.parameters(), foreach=False, **torch_options(hyper))
    for t in range(50):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[t]), y[t]).backward()
        optimizer.step()
    for key, p in model.named_parameters():
        torch.testing.assert_close(ours[key], p, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=lambda v: v if isinstance(v, str) else str(list(v.values())))
def test_hypergradient_equals_finite_differences(name, hyper):
    model, (x, y) = network(), data(NUM_STEPS + 1)
    values = {k: torch.full((NUM_STEPS,), v, requires_grad=True) for k, v in hyper.items()}
    loss = outer_loss(name, model, x, y, values, create_graph=True)
    gradients = dict(zip(values, torch.autograd.grad(loss, list(values.values())), strict=True))

    def moved(key: str, direction: torch.Tensor, h: float) -> float:
        return outer_loss(name, model, x, y, {**values, key: values[key].detach() + h * direction}).item()

    everywhere = torch.randn(NUM_STEPS, generator=torch.Generator().manual_seed(5))
    first, last = torch.eye(NUM_STEPS)[[0, -1]]
    for key, gradient in gradients.items():
        # An eps of 1e-8 changes the loss so little that its rounding limits the oracle.
        h, tolerance = {"eps1e-08": (3e-9, 1e-5), "eps0.001": (3e-6, 1e-7)}.get(f"{key}{hyper[key]}", (3e-5, 1e-7))
        for direction in (everywhere / everywhere.abs().amax(), first, last):
            near = (moved(key, direction, h) - moved(key, direction, -h)) / (2 * h)
            far = (moved(key, direction, 2 * h) - moved(key, direction, -2 * h)) / (4 * h)
            expected = (4 * near - far) / 3  # fourth order
            scale = max(abs(expected), 1e-2 * gradient.norm().item())
            assert abs((gradient @ direction).item() - expected) < tolerance * scale, key


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("rule", [SGD(), Adam(), AdamW()], ids=["sgd", "adam", "adamw"])
def test_one_update_has_right_derivatives_in_all_that_it_reads(rule, weight_decay):
    generator = torch.Generator().manual_seed(6)
    state = rule.init({"w": torch.zeros(4)})
    moving = [k for k, s in state.items() if s.is_floating_point()]
    fixed = {"step": state["step"] + 6} if "step" in state else {}
    start = dict(lr=0.1, momentum=0.0, weight_decay=weight_decay, beta1=0.9, beta2=0.99, eps=0.1)
    hyper = [torch.tensor(start[k], requires_grad=True) for k in rule.hyperparameters]
    tensors = [torch.rand(4, generator=generator).add(0.1).requires_grad_() for _ in range(2 + len(moving))]

    def update(p, g, *rest):
        state = {**fixed, **dict(zip(moving, rest[: len(moving)], strict=True))}
        new, new_state = rule.update(
            {"w": p}, {"w": g}, state, dict(zip(rule.hyperparameters, rest[len(moving) :], strict=True))
        )
        return new["w"], *(new_state[k] for k in moving)

    assert torch.autograd.gradcheck(update, (*tensors, *hyper), rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradgradcheck(update, (*tensors, *hyper), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_dead_units_give_finite_hypergradients(name, eps):
    model, (x, y) = network(nn.ReLU), data(6)
    weights = model.state_dict()
    weights["0.bias"][:4] = -100.0  # never active: exactly zero gradients at every step
    hyper = dict(lr=0.02, weight_decay=0.0, beta1=0.9, beta2=0.99, eps=eps)
    values = {k: torch.full((5,), v, requires_grad=True) for k, v in hyper.items()}
    loss = outer_loss(name, model, x, y, values, create_graph=True)
    gradients = dict(zip(values, torch.autograd.grad(loss, list(values.values())), strict=True))
    for key, gradient in gradients.items():
        assert gradient.isfinite().all(), key

    keep = torch.arange(10) >= 4
    small = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    cut = {"0.weight": weights["0.weight"][keep], "0.bias": weights["0.bias"][keep]}
    small.load_state_dict({**weights, **cut, "2.weight": weights["2.weight"][:, keep]})
    loss = outer_loss(name, small, x, y, values, create_graph=True)
    without = torch.autograd.grad(loss, [values["lr"], values["beta2"]])
    torch.testing.assert_close(gradients["lr"], without[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients["beta2"], without[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_zero_as_number_and_as_tensor_give_the_same_weights(name):
    model, (x, y) = network(), data(5)
    hyper = dict(lr=0.05, momentum=0.0, weight_decay=0.0, beta1=0.0, beta2=0.0, eps=0.01)
    numbers = {k: hyper[k] for k in OPTIMIZERS[name].rule().hyperparameters}
    tensors = {k: torch.full((5,), v, requires_grad=True) for k, v in numbers.items()}
    a, b = unroll(name, model, x, y, numbers), unroll(name, model, x, y, tensors)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-14, atol=1e-14)


def test_bias_correction_keeps_its_digits_in_single_precision():
    p, g = {"w": torch.zeros(1, dtype=torch.float32)}, {"w": torch.ones(1, dtype=torch.float32)}
    hyper = dict(lr=1.0, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=0.0)
    tensors = {k: torch.tensor(v, dtype=torch.float32) for k, v in hyper.items()}
    state = Adam().init(p)
    for t in range(1, 6):
        p, state = Adam().update(p, g, state, tensors)
        assert p["w"].dtype == torch.float32
        assert p["w"].item() == pytest.approx(-t, rel=1e-6)  # a constant gradient: every step is lr


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.1, 10) | st.floats(-10, -0.1), min_size=1, max_size=5), st.floats(0.5, 100.0))
def test_adam_does_not_feel_the_scale_of_the_loss(gradients, scale):
    hyper = dict(lr=0.1, weight_decay=0.0, beta1=0.9, beta2=0.99, eps=0.0)

    def run(factor: float) -> float:
        p, state = {"w": torch.ones(1)}, Adam().init({"w": torch.ones(1)})
        for g in gradients:
            p, state = Adam().update(p, {"w": torch.tensor([factor * g])}, state, hyper)
        return p["w"].item()

    assert run(scale) == pytest.approx(run(1.0), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_parameter_without_gradient_stays_and_inputs_are_not_changed(name):
    rule = OPTIMIZERS[name].rule()
    params = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}
    state = rule.init(params)
    before = {k: s.clone() for k, s in state.items()}
    hyper = dict(lr=0.1, momentum=0.9, weight_decay=0.1, beta1=0.9, beta2=0.99, eps=1e-8)
    new, new_state = rule.update(params, {"a": torch.ones(2), "b": None}, state, hyper)
    assert list(new) == list(params) and list(new_state) == list(state)
    assert not torch.equal(new["a"], params["a"])
    for key in ("b", "c"):
        assert torch.equal(new[key], torch.ones_like(params[key]))
        assert all(torch.equal(new_state[k], s) for k, s in state.items() if k.endswith(f".{key}"))
    assert all(torch.equal(state[k], s) for k, s in before.items())
    assert torch.equal(params["a"], torch.ones(2))


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_maps_over_a_population(name):
    rule = OPTIMIZERS[name].rule()
    generator = torch.Generator().manual_seed(7)
    p, g = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    lr = torch.rand(5, generator=generator)
    hyper = dict(momentum=0.9, weight_decay=0.1, beta1=0.9, beta2=0.99, eps=1e-8)

    def step(p, g, lr):
        new, state = rule.update({"w": p}, {"w": g}, rule.init({"w": p}), {**hyper, "lr": lr})
        return rule.update(new, {"w": g}, state, {**hyper, "lr": lr})[0]["w"]

    expected = torch.stack([step(*one) for one in zip(p, g, lr, strict=True)])
    torch.testing.assert_close(torch.vmap(step)(p, g, lr), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_recipe_is_the_rule_and_just_its_hyperparameters(name):
    config = OptimizerConfig(name=name, lr=0.3, momentum=0.5, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.01)
    rule, hyper = recipe(config)
    known = dict(lr=0.3, momentum=0.5, beta1=0.8, beta2=0.95, eps=1e-4, weight_decay=0.01)
    assert type(rule) is type(OPTIMIZERS[name].rule())
    assert hyper == {k: known[k] for k in rule.hyperparameters}
