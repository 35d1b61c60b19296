"""Temperature: closed forms, true derivatives, STE at 0 to the last bit, Hestia's schedule by its authors' formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from metasched import build_method, build_problem, find_unroll, hand_coded, progress_of_steps, train
from metasched.config.schema import Experiment
from metasched.core.layer import Layer
from metasched.core.randomness import Draw
from metasched.engines import UNROLLS
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.finite_differences import TOLERANCE, error_against_differences, outer_loss
from metasched.engines.tangent import slope_along
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors
from metasched.quantizers.hard import hard
from metasched.quantizers.levels import LevelSet, binary, integers, powers_of_two, ternary
from metasched.quantizers.softmax import soft
from metasched.quantizers.straight import straight_through
from metasched.runs.config import RunConfig
from metasched.schedules.tempering import NEAREST
from metasched.tasks.config import TaskConfig
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.stacked import of_run, train_mapped
from metasched.training.state import InnerProblem

DRAW = Draw(0, 0, 0)
LEVELS = {"ternary": ternary(), "binary": binary(), "int3": integers(3, signed=True, balanced=False)}
LEVELS["pow2_3"] = powers_of_two(3)
LEARNED = {"scale": "learned", "activation_scale": "learned", "granularity": "channel"}
SCALES = {"fixed": {"scale": "max"}, "learned": LEARNED}
scales = pytest.mark.parametrize("own", SCALES.values(), ids=SCALES)
LAYERS = [Layer(f"l{i}", i / 2, "conv", "weight+activation", 9, 81, 1.585) for i in range(3)]
STEPS = 4


def problem_of(name: str, optimizer: str = "adam", **method: Any) -> InnerProblem:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=6, steps=STEPS, batch=16, train=64, validation=16, test=16),
        optimizer=OptimizerConfig(name=optimizer, lr=0.05, eps=1e-3),
        method=MethodConfig(name=name, **method),
        run=RunConfig(dtype="float64"),
    )
    return build_problem(experiment.problem).with_seed(3)


def drawn(problem: InnerProblem) -> Tensors:
    """Temperatures that fall from 0.8 to 0.3 or so, blends that rise."""
    size = (STEPS, len(problem.network.layers))
    fall = 0.3 + 0.5 * torch.rand(size).sort(0, descending=True).values
    return {c.name: 1 - fall if c.name.endswith("blend") else fall for c in problem.network.method.controls}


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_the_closed_form_and_its_derivatives(levels: LevelSet) -> None:
    x, tau = (2 * torch.randn(50)).requires_grad_(), torch.tensor(0.4, requires_grad=True)
    q = np.array(levels.levels)
    e = (x.detach().numpy()[:, None] - q) ** 2
    p = np.exp(-e / 0.4) / np.exp(-e / 0.4).sum(1, keepdims=True)
    found = soft(x, levels, tau)
    np.testing.assert_allclose(found.detach(), p @ q, rtol=0, atol=1e-12)
    weights = np.random.default_rng(0).standard_normal(50)
    of_x, of_tau = torch.autograd.grad((found * torch.tensor(weights)).sum(), [x, tau])
    variance = p @ q**2 - (p @ q) ** 2
    np.testing.assert_allclose(of_x, weights * 2 / 0.4 * variance, rtol=0, atol=1e-12)
    slope = (p * q * (e - (p * e).sum(1, keepdims=True))).sum(1) / 0.4**2
    assert float(of_tau) == pytest.approx(float((weights * slope).sum()), rel=1e-10)
    assert torch.autograd.gradcheck(lambda x, tau: soft(x, levels, tau), (x, tau))
    assert torch.autograd.gradgradcheck(lambda x, tau: soft(x, levels, tau), (x, tau))


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_it_tends_to_the_hard_quantizer_and_is_straight_through_at_0(levels: LevelSet) -> None:
    x = (3 * torch.randn(300)).requires_grad_()
    apart = [
        float((soft(x, levels, torch.tensor(tau)) - hard(x, levels)).detach().abs().mean())
        for tau in (0.5, 0.1, 0.02, 1e-3)
    ]
    assert apart == sorted(apart, reverse=True) and apart[-1] < 0.01
    for tau in (0.0, 1e-17):
        found, expected = soft(x, levels, torch.tensor(tau)), straight_through(x, levels, 0.5)
        assert torch.equal(found, expected)
        assert torch.equal(*(torch.autograd.grad(t.sum(), x)[0] for t in (found, expected)))
    for tau in (1e-15, 1e-8):  # the smallest that counts: finite, and on the levels
        out = soft(x, levels, torch.tensor(tau))
        assert torch.equal(out, hard(x, levels)) and bool(torch.autograd.grad(out.sum(), x)[0].isfinite().all())


def test_mapped_over_temperatures_it_is_that_of_each() -> None:
    x, taus = torch.randn(20), torch.tensor([0.0, 0.3, 1e-20, 1.5])
    mapped = torch.vmap(lambda tau: soft(x, ternary(), tau))(taus)
    assert torch.allclose(mapped, torch.stack([soft(x, ternary(), tau) for tau in taus]), rtol=0, atol=1e-15)


def test_between_two_levels_it_is_a_logistic_stair_of_half_the_temperature() -> None:
    x, tau = torch.linspace(-1, 2, 50), torch.tensor(0.3)
    levels = integers(1, signed=False, balanced=False)
    assert torch.allclose(soft(x, levels, tau), torch.sigmoid((x - 0.5) / (tau / 2)))


@scales
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_at_0_it_is_ste_to_the_last_bit(optimizer: str, own: dict[str, Any]) -> None:
    ours, floor = (problem_of(name, optimizer, **own) for name in ("temperature", "ste"))
    schedule = hand_coded("temperature")["temperature_none"](progress_of_steps(STEPS), ours.network.layers)
    for c in ours.network.method.controls:
        assert bool((schedule[c.name] == c.none_value).all())
    mine, theirs = train(ours, schedule), train(floor, {})
    assert torch.equal(mine.losses, theirs.losses)
    assert all(torch.equal(p, mine.state.params[n]) for n, p in theirs.state.params.items())


@scales
@pytest.mark.parametrize("control", ["weight_temperature", "weight_blend", "activation_temperature"])
def test_hypergradients_against_central_differences(control: str, own: dict[str, Any]) -> None:
    problem = problem_of("temperature", **own)
    controls, outer = drawn(problem), OuterLoss("relaxed")
    slopes = [control_gradient(find_unroll(engine), problem, controls, outer).wrt[control] for engine in UNROLLS]
    for _ in range(3):
        direction = torch.randn(slopes[0].shape)

        def along(h: float, direction: torch.Tensor = direction) -> float:
            return outer_loss(problem, {**controls, control: controls[control] + h * direction}, outer)

        for slope in slopes:
            error = error_against_differences(along, float((slope * direction).sum()))
            assert error is not None and error <= TOLERANCE
    assert bool((slopes[0] != 0).all())


@scales
def test_forward_mode_and_stacked_runs_agree(own: dict[str, Any]) -> None:
    problem = problem_of("temperature", **own)
    controls = drawn(problem)
    direction = {name: torch.rand_like(v) for name, v in controls.items()}
    reverse = control_gradient(find_unroll("sweep"), problem, controls, OuterLoss("hardened")).wrt
    expected = sum(float((reverse[name] * d).sum()) for name, d in direction.items())
    assert slope_along(problem, controls, direction, OuterLoss("hardened")).slope == pytest.approx(expected, rel=1e-9)
    states = train_mapped(problem, {name: torch.stack([v, v]) for name, v in controls.items()}, [3, 8])
    for i, seed in enumerate((3, 8)):
        alone, one = train(problem.with_seed(seed), controls).state, of_run(states, i)
        assert all(torch.allclose(one.params[n], p, rtol=0, atol=1e-9) for n, p in alone.params.items())


def test_its_controls_do_not_mix() -> None:
    method = build_method(MethodConfig(name="temperature"))
    w, _, state = method.initialize(torch.randn(6, 9), {}, DRAW)
    cold, warm, none, all_of_it = (torch.tensor(v) for v in (0.0, 0.5, 0.0, 1.0))
    x = torch.randn(40)

    def seen(tau: torch.Tensor, blend: torch.Tensor) -> torch.Tensor:
        return method.weight(w, state, {"weight_temperature": tau, "weight_blend": blend}, DRAW)

    assert torch.equal(seen(warm, none), w) and torch.equal(seen(cold, all_of_it), method.harden(w, state, 0.5))
    assert torch.equal(seen(warm, all_of_it), soft(w, ternary(), warm))
    assert torch.equal(method.activation(x, state, {"activation_temperature": warm}, DRAW), soft(x, ternary(), warm))
    weights = build_method(MethodConfig(name="temperature", activation_levels=None))
    assert [c.name for c in weights.controls] == ["weight_temperature", "weight_blend"]


def test_the_temperature_of_hestia_is_the_one_nearest_to_the_identity() -> None:
    """For normal weights whose mean absolute value is one quantum, as their scale makes it."""
    sigma = math.sqrt(math.pi / 2)

    def distance(tau: float) -> float:
        def integrand(z: float) -> float:
            error = float(soft(torch.tensor(z), ternary(), torch.tensor(tau))) - z
            return error**2 * math.exp(-((z / sigma) ** 2) / 2)

        return quad(integrand, 0, 8, limit=40)[0]

    assert minimize_scalar(distance, bounds=(0.1, 2.0), method="bounded", options={"xatol": 1e-4}).x == pytest.approx(  # pyright: ignore
        NEAREST, abs=1e-3
    )


def test_hestia_presses_for_a_fifth_of_the_run_and_then_cools() -> None:
    u = np.arange(1001) / 1000
    values = hand_coded("temperature")["temperature_hestia"](torch.tensor(u), LAYERS)
    cooling = 0.5 * (1 + np.cos(np.pi * (u - 0.2) / 0.8))
    tau = 0.351 * np.where(u <= 0.2, 1.0, cooling)
    for i in range(3):
        np.testing.assert_allclose(values["weight_blend"][:, i], np.minimum(u / 0.2, 1), rtol=0, atol=1e-12)
        np.testing.assert_allclose(values["weight_temperature"][:, i], tau, rtol=0, atol=1e-12)
    assert bool((values["activation_temperature"] == 0).all())
    assert values["weight_temperature"][-1].tolist() == [0.0] * 3


def test_the_other_schedules_treat_weights_and_activations_alike() -> None:
    u = progress_of_steps(11)
    for name, schedule in hand_coded("temperature").items():
        values = schedule(u, LAYERS)
        if name != "temperature_hestia":
            assert torch.equal(values["weight_temperature"], values["activation_temperature"])
            assert bool((values["weight_blend"] == 1).all())
    constant = hand_coded("temperature")["temperature_constant"](u, LAYERS)["weight_temperature"]
    assert constant[:, 1].tolist() == [NEAREST] * 10 + [0.0]
