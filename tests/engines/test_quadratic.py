"""Closed form: on a separable quadratic the trajectory and all its derivatives are a recursion of numbers.

loss(w) = 1/2 sum a (gain_t w - b)^2,   v_{t+1} = m v_t + gain_t a (gain_t w_t - b),   w_{t+1} = w_t - lr_t v_{t+1}
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw
from metasched.engines import UNROLLS, find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.finite_differences import outer_loss
from metasched.estimators.smoothed import smoothed_gradient
from metasched.methods.base import Control, Method, State, Values
from metasched.network.quantize import quantize
from metasched.tasks.quadratic import quadratic_task
from metasched.training.optimizers import OPTIMIZERS
from metasched.training.state import InnerProblem

CURVATURE = np.array([1.0, 0.6, 0.35, 0.2])
TARGET = np.array([0.8, -0.4, 0.1, -1.2])
START = np.array([0.3, -0.7, 1.1, 0.2])
NUM_STEPS = 12
RNG = np.random.default_rng(0)
GAINS = RNG.uniform(0.5, 1.5, NUM_STEPS)
RATES = RNG.uniform(0.05, 0.4, NUM_STEPS)


@dataclass(frozen=True)
class Gain(Method):
    """A method that scales its weight, which starts at START, by its one control."""

    controls: tuple[Control, ...] = (Control("gain", 0.0, 2.0, "factor", "free", end=None),)
    quantizes: Quantizes = "weight"
    bits: float = 1.0

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        return torch.from_numpy(START)[None].to(w), {}, {}

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return controls["gain"] * w

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return x

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return w

    def harden_activation(self, x: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return x


def closed_form(momentum: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Final loss and its derivatives in each gain and each learning rate, by forward sensitivities.

    The outer loss is that of the relaxed objective: the last step's gain once more, on the weight after that step.
    """
    a, b = CURVATURE, TARGET
    w, v = START.copy(), np.zeros(4)
    # columns: the T gains, then the T learning rates
    dw, dv = np.zeros((4, 2 * NUM_STEPS)), np.zeros((4, 2 * NUM_STEPS))
    for t, (g, lr) in enumerate(zip(GAINS, RATES, strict=True)):
        v = momentum * v + g * a * (g * w - b)
        dv = momentum * dv + (g * g * a)[:, None] * dw
        dv[:, t] += a * (2 * g * w - b)
        w = w - lr * v
        dw = dw - lr * dv
        dw[:, NUM_STEPS + t] -= v
    g = GAINS[-1]
    slope = (a * (g * w - b) * g) @ dw
    slope[NUM_STEPS - 1] += (a * (g * w - b) * w).sum()
    return 0.5 * float((a * (g * w - b) ** 2).sum()), slope[:NUM_STEPS], slope[NUM_STEPS:]


def problem_with(momentum: float, rates: torch.Tensor) -> InnerProblem:
    task = quadratic_task(torch.from_numpy(CURVATURE), torch.from_numpy(TARGET))
    network = quantize(task.build(), Gain(), task.train.x[:2], last=True)
    hyper = {"lr": rates, "momentum": momentum, "weight_decay": 0.0}
    return InnerProblem(network, task, OPTIMIZERS["sgd"].rule(), hyper, NUM_STEPS, seed=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("estimator", UNROLLS)
def test_gains_and_learning_rates(estimator, momentum):
    loss, of_gains, of_rates = closed_form(momentum)
    rates = torch.from_numpy(RATES).requires_grad_()
    problem = problem_with(momentum, rates)
    gains = torch.from_numpy(GAINS)[:, None].requires_grad_()
    unrolled = find_unroll(estimator)(problem, {"gain": gains}, OuterLoss("relaxed"))
    by_gains, by_rates = torch.autograd.grad(unrolled.loss, [gains, rates])
    assert unrolled.loss.item() == pytest.approx(loss, rel=1e-12)
    assert unrolled.score.item() == pytest.approx(-loss, rel=1e-12)
    for found, expected in ((by_gains[:, 0], of_gains), (by_rates, of_rates)):
        assert np.abs(found.numpy() - expected).max() <= 1e-12 * np.abs(expected).max()

    plain = replace(problem, hyper={**problem.hyper, "lr": tuple(RATES)})
    found = control_gradient(find_unroll(estimator), plain, {"gain": gains}, OuterLoss("relaxed"))
    assert np.abs(found.wrt["gain"][:, 0].numpy() - of_gains).max() <= 1e-12 * np.abs(of_gains).max()
    assert found.nonfinite == 0 and found.dead_layers == 0 and found.loss == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_without_a_graph_ends_at_the_same_loss(momentum):
    problem = problem_with(momentum, torch.from_numpy(RATES))
    gains = torch.from_numpy(GAINS)[:, None]
    found = outer_loss(problem, {"gain": gains}, OuterLoss("relaxed"))
    assert found == pytest.approx(closed_form(momentum)[0], rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_objectives_differ_by_the_gain_alone(momentum):
    """Hardened, this method plays its weight as it is."""
    problem = problem_with(momentum, torch.from_numpy(RATES))
    last = {"gain": torch.from_numpy(np.append(GAINS[:-1], 1.0))[:, None]}
    hardened, relaxed = (outer_loss(problem, last, OuterLoss(o)) for o in ("hardened", "relaxed"))
    assert hardened == pytest.approx(relaxed, rel=1e-12)
    scaled = {"gain": torch.from_numpy(np.append(GAINS[:-1], 0.5))[:, None]}
    assert outer_loss(problem, scaled, OuterLoss("relaxed")) != pytest.approx(hardened, rel=1e-3)


def test_smoothed_gradient_is_unbiased_on_a_quadratic():
    """Smoothing leaves the gradient of a quadratic as it is: the mean of 2,000 pairs is within 3 standard errors."""
    a, at = torch.from_numpy(CURVATURE), torch.from_numpy(START)
    exact = a * (at - torch.from_numpy(TARGET))

    def objective(w: torch.Tensor) -> float:
        return 0.5 * float((a * (w - torch.from_numpy(TARGET)) ** 2).sum())

    pairs = torch.stack([smoothed_gradient(objective, at, 0.1, pairs=1, seed=seed) for seed in range(2000)])
    standard_error = pairs.std(0) / len(pairs) ** 0.5
    assert bool((standard_error < 0.1).all())
    assert bool(((pairs.mean(0) - exact).abs() < 3 * standard_error).all())


def test_smoothed_gradient_of_a_step():
    """The derivative of E sign(x + sigma e) is twice the normal density; that of sign itself is 0."""
    sigma, at = 0.5, torch.tensor([0.3])
    found = smoothed_gradient(lambda x: float(x.sign()), at, sigma, pairs=4000, seed=0)
    expected = 2 * np.exp(-(0.3**2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    assert found.item() == pytest.approx(expected, rel=0.05)


def test_smoothed_gradient_uses_pairs_of_equal_and_opposite_points():
    seen: list[torch.Tensor] = []

    def objective(x: torch.Tensor) -> float:
        seen.append(x.clone())
        return float(x.sum())

    at = torch.tensor([[1.0, -2.0]])
    first = smoothed_gradient(objective, at, 0.1, pairs=3, seed=5)
    assert len(seen) == 6 and first.shape == at.shape
    assert all(torch.allclose((up + down) / 2, at) for up, down in zip(seen[::2], seen[1::2], strict=True))
    assert torch.equal(first, smoothed_gradient(objective, at, 0.1, pairs=3, seed=5))
    assert not torch.equal(first, smoothed_gradient(objective, at, 0.1, pairs=3, seed=6))
