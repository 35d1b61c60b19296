"""Truncated unrolling against its closed form, against plain unrolling where nothing is cut, and its bias."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metasched.commands.check import random_controls, small
from metasched.config.schema import Experiment, MetaConfig, MethodConfig, OptimizerConfig, TaskConfig
from metasched.core.errors import MetaschedError
from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw
from metasched.engines import find_unroll
from metasched.engines.base import ControlGradient, OuterLoss, control_gradient
from metasched.engines.truncated import unroll, windows
from metasched.methods.base import Control, Method, State, Values
from metasched.network.quantize import Tensors, quantize
from metasched.runs.pooled import local_runs
from metasched.tasks.quadratic import quadratic_task
from metasched.training.optimizers import OPTIMIZERS
from metasched.training.problem import build_problem
from metasched.training.step import InnerProblem

OBJECTIVES = ["hardened", "relaxed", "trajectory"]
RULES = {
    "sgd": OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.01),
    "adam": OptimizerConfig(name="adam", lr=0.05, eps=1e-3),
    "adamw": OptimizerConfig(name="adamw", lr=0.05, eps=1e-3, weight_decay=0.1),
}


def problem(method: str = "joint", rule: str = "adam", steps: int = 7) -> InnerProblem:
    tiny = small(
        Experiment(
            task=TaskConfig(model="mlp", width=4, train=64, validation=32),
            optimizer=RULES[rule],
            method=MethodConfig(name=method),  # type: ignore[arg-type]
        )
    )
    return build_problem(replace(tiny, task=replace(tiny.task, steps=steps)), relaxation=0.3).with_seed(2)


def controls_of(problem: InnerProblem) -> Tensors:
    return random_controls(problem.network.method.controls, problem.steps, len(problem.network.layers), 0, 0)


# --- where nothing is cut ---


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", ["ana", "inq", "joint"])
def test_one_window_is_plain_unrolling_bit_for_bit(method, rule, objective):
    here = problem(method, rule)
    controls, outer = controls_of(here), OuterLoss(objective)
    expected = control_gradient(find_unroll("unroll"), here, controls, outer)
    for whole in (partial(unroll, window=7, offset=7), partial(unroll, window=7), partial(unroll, window=1000)):
        found = control_gradient(whole, here, controls, outer)
        assert same_value(found, expected) and found.nonfinite == 0
        for name, slope in expected.wrt.items():
            assert bool(slope.any()) and torch.equal(found.wrt[name], slope), name


def same_value(a: ControlGradient, b: ControlGradient) -> bool:
    return (a.loss, a.score, a.dead_layers) == (b.loss, b.score, b.dead_layers)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_value_is_that_of_the_run_however_it_is_cut(objective):
    here, outer = problem(), OuterLoss(objective)
    controls = controls_of(here)
    expected = control_gradient(find_unroll("unroll"), here, controls, outer)
    for window, offset in ((1, 1), (2, 1), (3, 2), (6, None)):
        found = control_gradient(partial(unroll, window=window, offset=offset), here, controls, outer)
        assert same_value(found, expected)
        assert any(not torch.equal(found.wrt[name], slope) for name, slope in expected.wrt.items())


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**40))
def test_windows_are_all_steps_in_order(steps: int, window: int, seed: int) -> None:
    here = replace(QUADRATIC, steps=steps, seed=seed)
    found = list(windows(here, window, None))
    assert [step for part in found for step in part] == list(range(steps))
    assert all(len(part) == window for part in found[1:-1])
    assert all(1 <= len(part) <= window for part in found)
    assert found == list(windows(here, window, None))


def test_the_first_window_has_every_length_up_to_the_window() -> None:
    lengths = {len(next(windows(replace(QUADRATIC, seed=seed), 5, None))) for seed in range(60)}
    assert lengths == {1, 2, 3, 4, 5}
    assert [len(part) for part in windows(replace(QUADRATIC, steps=12), 5, 3)] == [3, 5, 4]


# --- closed form ---

CURVATURE = np.array([1.0, 0.6, 0.35, 0.2])
TARGET = np.array([0.8, -0.4, 0.1, -1.2])
START = np.array([0.3, -0.7, 1.1, 0.2])
STEPS = 12
GAINS = np.random.default_rng(0).uniform(0.5, 1.5, STEPS)
RATES = np.random.default_rng(1).uniform(0.05, 0.4, STEPS)


@dataclass(frozen=True)
class Gain(Method):
    """A method that scales its weight, which starts at START, by its one control."""

    controls: tuple[Control, ...] = (Control("gain", 0.0, 2.0, "factor", "free", end=None),)
    quantizes: Quantizes = "weight"
    bits: float = 1.0

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        return torch.from_numpy(START)[None, : w.shape[1]].to(w), {}, {}

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return controls["gain"] * w

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return x

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return w

    def harden_activation(self, x: torch.Tensor, surrogate: float) -> torch.Tensor:
        return x


def quadratic(curvature: np.ndarray, target: np.ndarray, rates: torch.Tensor, momentum: float = 0.0) -> InnerProblem:
    task = quadratic_task(torch.from_numpy(curvature), torch.from_numpy(target))
    network = quantize(task.build(), Gain(), task.train.x[:2], last=True)
    hyper = {"lr": rates, "momentum": momentum, "weight_decay": 0.0}
    return InnerProblem(network, task, OPTIMIZERS["sgd"].rule(), hyper, len(rates), seed=0)


QUADRATIC = quadratic(CURVATURE, TARGET, torch.from_numpy(RATES))


def closed_form(momentum: float, cuts: list[int], judged: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives in each gain and rate, by forward sensitivities that are forgotten at the cuts.

    The relaxed loss after step t is 1/2 sum a (g_t w - b)^2. A window's is the mean over its judged steps; without
    any, that after its last step.
    """
    a, b = CURVATURE, TARGET
    w, v, total = START.copy(), np.zeros(4), np.zeros(2 * STEPS)
    for start, end in zip(cuts, [*cuts[1:], STEPS], strict=True):
        dw, dv = np.zeros((4, 2 * STEPS)), np.zeros((4, 2 * STEPS))
        counted = [t for t in judged if start <= t < end] or [end - 1]
        for t in range(start, end):
            g, lr = GAINS[t], RATES[t]
            v = momentum * v + g * a * (g * w - b)
            dv = momentum * dv + (g * g * a)[:, None] * dw
            dv[:, t] += a * (2 * g * w - b)
            w = w - lr * v
            dw = dw - lr * dv
            dw[:, STEPS + t] -= v
            if t in counted:
                slope = (a * (g * w - b) * g) @ dw
                slope[t] += (a * (g * w - b) * w).sum()
                total += slope / len(counted)
    return total[:STEPS], total[STEPS:]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("window", "offset", "cuts"), [(1, 1, [*range(12)]), (4, 4, [0, 4, 8]), (5, 3, [0, 3, 8])])
def test_closed_form_on_the_quadratic(window, offset, cuts, momentum):
    of_gains, of_rates = closed_form(momentum, cuts, [STEPS - 1])
    rates = torch.from_numpy(RATES).requires_grad_()
    gains = torch.from_numpy(GAINS)[:, None].requires_grad_()
    here = quadratic(CURVATURE, TARGET, rates, momentum)
    loss = unroll(here, {"gain": gains}, OuterLoss("relaxed"), window, offset).loss
    found = torch.autograd.grad(3 * loss, [gains, rates])
    for slope, expected in zip(found, (of_gains, of_rates), strict=True):
        assert np.abs(slope.numpy().ravel() / 3 - expected).max() <= 1e-12 * np.abs(expected).max()


def test_judged_steps_stay_in_their_windows():
    """The trajectory objective judges the last fifth: here the last 3 steps, in two windows. Hardened, a gain is 1."""
    gains = torch.from_numpy(GAINS)[:, None].requires_grad_()
    here = replace(QUADRATIC, hyper={**QUADRATIC.hyper, "lr": tuple(RATES)})
    loss = unroll(here, {"gain": gains}, OuterLoss("trajectory"), 5, 1).loss
    (found,) = torch.autograd.grad(loss, gains)
    a, w, total = CURVATURE, START.copy(), np.zeros(STEPS)
    for start, end, counted in ((0, 1, [0]), (1, 6, [5]), (6, 11, [9, 10]), (11, 12, [11])):
        dw = np.zeros((4, STEPS))
        for t in range(start, end):
            g = GAINS[t]
            dw = dw - RATES[t] * (g * g * a)[:, None] * dw
            dw[:, t] -= RATES[t] * a * (2 * g * w - TARGET)
            w = w - RATES[t] * g * a * (g * w - TARGET)
            if t in counted:
                total += (a * (w - TARGET)) @ dw / len(counted)
    np.testing.assert_allclose(found[:, 0].numpy(), total, rtol=1e-12, atol=1e-14)


# --- bias ---


def test_short_windows_want_smaller_steps_where_the_whole_run_wants_larger_ones():
    """Short-horizon bias (Wu et al., 2018), on two curvatures, for which lr = 1.6 overshoots the steep one.

    In each coordinate e_{t+1} = (1 - lr_t a) e_t, so that over a window of K steps at one lr

        d l / d lr_t = - sum a^2 e_start^2 (1 - lr a)^(2 K - 1)

    At the end of the run the steep coordinate is long gone, and longer steps help the flat one: negative slopes. At
    the end of a short window the overshooting of the steep one is all that counts: positive slopes.
    """
    a, lr, steps = np.array([1.0, 0.02]), 1.6, 24
    gains = {"gain": torch.ones(steps, 1)}

    def slopes(window: int, offset: int) -> np.ndarray:
        rates = torch.full((steps,), lr, requires_grad=True)
        loss = unroll(quadratic(a, np.zeros(2), rates), gains, OuterLoss("relaxed"), window, offset).loss
        return torch.autograd.grad(loss, rates)[0].numpy()

    def expected(start: int, length: int) -> float:
        return -float((a**2 * (START[:2] * (1 - lr * a) ** start) ** 2 * (1 - lr * a) ** (2 * length - 1)).sum())

    exact = slopes(steps, steps)
    np.testing.assert_allclose(exact, expected(0, steps), rtol=1e-10)
    assert (exact < 0).all()
    for offset in (1, 2, 3):  # whatever the offset: random cuts do not remove the bias
        found = slopes(3, offset)
        np.testing.assert_allclose(found[:offset], expected(0, offset), rtol=1e-10)
        np.testing.assert_allclose(found[offset : offset + 3], expected(offset, 3), rtol=1e-10)
        assert (found[:offset] > 0).all()
    early = [slopes(window, window)[0] for window in (1, 3, 6, 12, 24)]
    distances = [abs(slope - exact[0]) for slope in early]
    assert distances == sorted(distances, reverse=True) and distances[-1] == 0


# --- what it costs, and how it is asked for ---


def test_its_graph_is_that_of_one_window(monkeypatch):
    """Tensors that wait for the way back, at most: as many at 3 windows as at 6."""

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

    def peak(steps: int, window: int) -> int:
        here = problem("ana", steps=steps)
        controls = controls_of(here)
        live: weakref.WeakSet[Kept] = weakref.WeakSet()
        most = 0

        def pack(tensor: torch.Tensor) -> Kept:
            nonlocal most
            kept = Kept(tensor)
            live.add(kept)
            most = max(most, len(live))
            return kept

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            control_gradient(partial(unroll, window=window, offset=window), here, controls, OuterLoss())
        return most

    assert peak(18, 3) <= 1.05 * peak(9, 3) < 0.7 * peak(9, 9)


def test_what_requires_no_gradient_gets_none():
    here = problem()
    controls = controls_of(here)
    assert not unroll(here, controls, OuterLoss(), window=2).loss.requires_grad
    controls["noise_mean"].requires_grad_()
    loss = unroll(here, controls, OuterLoss(), window=2).loss
    (alone,) = torch.autograd.grad(loss, controls["noise_mean"], retain_graph=True)
    together = control_gradient(partial(unroll, window=2), here, controls, OuterLoss()).wrt["noise_mean"]
    assert torch.equal(alone, together) and bool(alone.any())


def test_it_is_configured_by_name_and_window():
    task = TaskConfig(model="mlp", width=4, train=64, validation=32, steps=20)
    meta: dict[str, Any] = {"estimator": "truncated"}
    for window, expected in ((None, 2), (7, 7)):
        own = Experiment(task=task, meta=MetaConfig(**meta, window=window))
        runs = local_runs(own.problem, own.meta)
        controls = controls_of(runs.problem)
        found = control_gradient(runs.unroll, runs.problem, controls, runs.outer).wrt
        direct = control_gradient(partial(unroll, window=expected), runs.problem, controls, runs.outer).wrt
        assert all(torch.equal(found[name], direct[name]) for name in direct)
    with pytest.raises(MetaschedError, match=r"meta\.memory: has no effect on truncated"):
        find_unroll("truncated", memory=10**6)
