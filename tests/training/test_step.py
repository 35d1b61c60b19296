"""One inner step against torch.optim on the same float network, and what the initial state depends on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw, derive_seed
from metasched.methods import build_method
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.config import MethodConfig
from metasched.network.quantize import quantize
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.loss import training_loss
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import inner_step

STEPS = 20
OPTIMIZERS = {
    "sgd": OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": OptimizerConfig(name="adam", lr=0.03, weight_decay=1e-2),
    "adamw": OptimizerConfig(name="adamw", lr=0.03, weight_decay=1e-1),
}


@dataclass(frozen=True)
class Float(Method):
    """The identity: no quantization at all. Decay adds ``decay / 2 |w|^2`` to the loss."""

    decay: float = 0.0
    controls: tuple[Control, ...] = ()
    quantizes: Quantizes = "weight"
    bits: float = 32.0

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        return w, {}, {}

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return w

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        raise AssertionError("activations stay as they are")

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor | None:
        return self.decay / 2 * w.square().sum() if self.decay else None

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return w

    def harden_activation(self, x: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        raise AssertionError("activations stay as they are")


def build() -> nn.Module:
    first = nn.Linear(6, 8, bias=False)  # the gradient of a bias would be rounding noise, which Adam makes large
    return nn.Sequential(first, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def problem(method: Method, optimizer: str = "sgd", seed: int = 4) -> InnerProblem:
    draws = torch.Generator().manual_seed(5)
    y = torch.arange(40) % 3
    part = Split(torch.randn(40, 6, generator=draws) + 2 * F.one_hot(y, 6), y)
    task = SupervisedTask("blobs", part, part, part, build, F.cross_entropy, F.cross_entropy, batch_size=16)
    update, hyper = recipe(OPTIMIZERS[optimizer])
    return InnerProblem(quantize(build(), method, part.x[:2], last=True), task, update, hyper, STEPS, seed)


def torch_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    config = OPTIMIZERS[name]
    if name == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(model.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_quantization_it_is_the_training_loop_of_torch(optimizer: str, differentiable: bool) -> None:
    inner = problem(Float(), optimizer)
    torch.manual_seed(derive_seed(inner.seed, "weights"))
    model = build()
    reference = torch_optimizer(optimizer, model)
    state = inner.initial({})
    if differentiable:
        state = state._replace(params={key: p.detach().requires_grad_() for key, p in state.params.items()})
    for step in range(STEPS):
        state, loss, gradients = inner_step(inner, state, {}, step, differentiable=differentiable)
        x, y = inner.task.batch(inner.seed, step)
        expected = F.cross_entropy(model(x), y)
        reference.zero_grad()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        for key, p in model.named_parameters():
            assert p.grad is not None
            assert torch.allclose(gradients[key], p.grad, rtol=1e-11, atol=1e-12)
        reference.step()
    for key, p in model.named_parameters():
        assert (state.params[key] - p).abs().max().item() <= 1e-12
        assert state.params[key].requires_grad == differentiable
    for key, b in model.named_buffers():
        assert torch.allclose(state.buffers[key].to(b), b, rtol=0, atol=1e-12)


def test_the_penalty_is_part_of_the_loss() -> None:
    decayed, plain = problem(Float(decay=0.3)), problem(Float())
    state = plain.initial({})
    squares = sum(state.params[f"{layer.name}.weight"].square().sum() for layer in plain.network.layers)
    loss, _ = training_loss(decayed, state, {}, 0)
    without, _ = training_loss(plain, state, {}, 0)
    assert loss.item() == pytest.approx(without.item() + 0.15 * float(squares), rel=1e-13)
    _, _, gradients = inner_step(decayed, state, {}, 0, differentiable=False)
    _, _, others = inner_step(plain, state, {}, 0, differentiable=False)
    assert torch.allclose(gradients["0.weight"], others["0.weight"] + 0.3 * state.params["0.weight"])
    assert torch.allclose(gradients["3.bias"], others["3.bias"])


def joint() -> tuple[InnerProblem, dict[str, torch.Tensor]]:
    inner = problem(build_method(MethodConfig(name="joint", forward="random")))
    values = {"weight_noise": 0.4, "activation_noise": 0.4, "noise_mean": 0.0, "freeze_fraction": 0.3}
    return inner, {key: torch.full((len(inner.network.layers),), v) for key, v in values.items()}


def flat(state: TrainingState) -> dict[str, torch.Tensor]:
    return {f"{i}/{key}": t for i, part in enumerate(state) for key, t in part.items()}


@pytest.mark.parametrize("differentiable", [False, True])
def test_a_step_changes_none_of_its_arguments_and_repeats(differentiable: bool) -> None:
    inner, controls = joint()
    state = inner.initial(controls)
    state = state._replace(params={key: p.requires_grad_() for key, p in state.params.items()})
    before = {key: t.detach().clone() for key, t in flat(state).items()}
    module = {key: t.clone() for key, t in inner.network.module.state_dict().items()}
    first = flat(inner_step(inner, state, controls, 3, differentiable=differentiable)[0])
    torch.rand(5)
    second = flat(inner_step(inner, state, controls, 3, differentiable=differentiable)[0])
    assert all(torch.equal(t, second[key]) for key, t in first.items())
    assert all(torch.equal(t, before[key]) for key, t in flat(state).items())
    assert all(torch.equal(t, module[key]) for key, t in inner.network.module.state_dict().items())
    other = flat(inner_step(inner, state, controls, 4, differentiable=differentiable)[0])
    assert any(not torch.equal(t, other[key]) for key, t in first.items())


def test_with_and_without_a_graph_the_numbers_are_the_same() -> None:
    inner, controls = joint()
    plain = kept = inner.initial(controls)
    kept = kept._replace(params={key: p.requires_grad_() for key, p in kept.params.items()})
    for step in range(3):
        plain, loss, _ = inner_step(inner, plain, controls, step, differentiable=False)
        kept, other, _ = inner_step(inner, kept, controls, step, differentiable=True)
        assert loss.item() == other.item() and not loss.requires_grad
    for key, t in flat(plain).items():
        assert torch.equal(t, flat(kept)[key])
        assert not t.requires_grad


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    inner, controls = joint()
    torch.manual_seed(1)
    first = inner.initial(controls)
    torch.manual_seed(2)
    generator_state = torch.get_rng_state()
    second = inner.initial(controls)
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert all(torch.equal(t, flat(second)[key]) for key, t in flat(first).items())
    third = inner.with_seed(5).initial(controls)
    for key in ("0.weight", "3.bias", "3.weight"):
        assert not torch.equal(third.params[key], first.params[key])


def test_batches_are_a_stream_of_their_own() -> None:
    """Another method, which draws other numbers, sees the same batches and the same float weights."""
    inner, controls = joint()
    plain = problem(Float())
    inner.initial(controls)
    for step in range(4):
        assert torch.equal(inner.task.batch(inner.seed, step).x, plain.task.batch(plain.seed, step).x)
    torch.manual_seed(derive_seed(4, "weights"))
    assert torch.equal(plain.initial({}).params["3.weight"], dict(build().named_parameters())["3.weight"])
    assert torch.equal(inner.initial(controls).params["3.bias"], plain.initial({}).params["3.bias"])


def test_hyperparameters_of_a_step() -> None:
    inner, _ = joint()
    rates = torch.linspace(1, 0, STEPS, requires_grad=True)
    varied = InnerProblem(
        inner.network,
        inner.task,
        inner.optimizer,
        {"lr": rates, "a": (1.0, 2.0), "b": torch.tensor(3.0), "c": 4.0},
        2,
        0,
    )
    now = varied.hyper_at(1)
    assert isinstance(now["lr"], torch.Tensor) and now["lr"].requires_grad and now["lr"].item() == rates[1].item()
    assert (now["a"], float(now["b"]), now["c"]) == (2.0, 3.0, 4.0)


def test_the_derivative_in_the_learning_rate_against_finite_differences() -> None:
    inner = problem(Float(), "sgd")

    def last_loss(rate: torch.Tensor) -> torch.Tensor:
        varied = InnerProblem(
            inner.network, inner.task, inner.optimizer, {**inner.hyper, "lr": rate}, inner.steps, inner.seed
        )
        state = varied.initial({})
        state = state._replace(params={key: p.detach().requires_grad_() for key, p in state.params.items()})
        for step in range(3):
            state, _, _ = inner_step(varied, state, {}, step, differentiable=True)
        return training_loss(varied, state, {}, 3)[0]

    rate = torch.tensor(0.1, requires_grad=True)
    (found,) = torch.autograd.grad(last_loss(rate), rate)
    h = 1e-6
    difference = (last_loss(rate + h) - last_loss(rate - h)).item() / (2 * h)
    assert found.item() == pytest.approx(difference, rel=1e-6)


def test_parameters_that_the_loss_does_not_reach_get_a_gradient_of_zero() -> None:
    inner = problem(build_method(MethodConfig(name="ana")))
    noise = torch.tensor([0.5, 0.0, 0.5])
    controls = {"weight_noise": noise, "activation_noise": noise, "noise_mean": torch.zeros(3)}
    state = inner.initial(controls)
    _, _, gradients = inner_step(inner, state, controls, 0, differentiable=False)
    # without noise a layer and all below it learn nothing; the layer above does
    assert not gradients["3.weight"].any() and not gradients["0.weight"].any() and gradients["5.weight"].any()
    assert set(gradients) == set(state.params)
