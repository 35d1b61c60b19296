"""The transitions between discrete states: their frequencies, what they leave in balance, and their derivative."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metasched.core.randomness import Draw
from metasched.quantizers.transitions import (
    acceptance,
    discrete_transition,
    first_order,
    metropolis,
    metropolis_transition,
    propose,
)

DRAWS = 1_000_000
LEAST_P = 1e-3  # of every chi-square test; the seeds are fixed
CASES = [  # state, step in quanta, top, m
    (1, 0.05, 2, 3.0),
    (1, -0.7, 2, 3.0),
    (2, -1.02, 2, 3.0),
    (0, -0.4, 2, 3.0),  # at the end of the range: stays
    (0, 2.01, 4, 0.5),
    (3, 1.3, 4, 3.0),  # jumps of two would leave
    (6, -2.5, 8, 1.0),
]


def uniforms(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    like = torch.zeros(shape)
    one, two, three = (Draw(seed, 0, 0).uniform(purpose, like) for purpose in ("size", "way", "acceptance"))
    return one, two, three


def paper_law(k: int, x: float, top: int, m: float) -> np.ndarray:
    """Probability of each next state, from the formula."""
    kappa = math.floor(abs(x))
    p = math.tanh(m * (abs(x) - kappa))
    law = np.zeros(top + 1)
    for b, chance in ((0, 1 - p), (1, p)):
        law[min(max(k + int(math.copysign(kappa + b, x)), 0), top)] += chance
    return law


def metropolis_law(
    k: int, x: float, unit: float, temperature: float, top: int, m: float, uphill: float = 0.5
) -> np.ndarray:
    kappa = math.floor(abs(x))
    p = math.tanh(m * (abs(x) - kappa))
    law = np.zeros(top + 1)
    for b, chance in ((0, 1 - p), (1, p)):
        for way, share in ((1, 1 - uphill), (-1, uphill)):
            d = way * int(math.copysign(kappa + b, x))
            accepted = min(1.0, math.exp(min(0.0, d * x / unit / temperature))) if 0 <= k + d <= top else 0.0
            law[min(max(k + d, 0), top)] += chance * share * accepted
            law[k] += chance * share * (1 - accepted)
    return law


def check_frequencies(found: torch.Tensor, law: np.ndarray) -> None:
    counts = np.bincount(found.long().numpy(), minlength=len(law))
    possible = law > 1e-9
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], DRAWS * law[possible] / law[possible].sum()).pvalue > LEAST_P


@pytest.mark.parametrize(("k", "x", "top", "m"), CASES)
def test_frequencies_of_the_discrete_state_transition(k: int, x: float, top: int, m: float) -> None:
    uniform = uniforms(1, DRAWS)[0]
    found = discrete_transition(torch.full((DRAWS,), float(k)), torch.full((DRAWS,), x), top, m, uniform)
    check_frequencies(found, paper_law(k, x, top, m))


def test_the_frequency_test_can_fail() -> None:
    uniform = uniforms(1, DRAWS)[0]
    found = discrete_transition(torch.ones(DRAWS), torch.full((DRAWS,), 0.05), 2, 3.1, uniform)
    with pytest.raises(AssertionError):
        check_frequencies(found, paper_law(1, 0.05, 2, 3.0))


@pytest.mark.parametrize(("k", "x", "top", "m"), CASES)
def test_frequencies_of_metropolis(k: int, x: float, top: int, m: float) -> None:
    temperature = 0.8
    steps = torch.full((DRAWS,), x)
    found = metropolis_transition(
        torch.full((DRAWS,), float(k)), steps, torch.tensor(temperature), top, m, 0.4, uniforms(2, DRAWS)
    )
    check_frequencies(found, metropolis_law(k, x, abs(x), temperature, top, m, 0.4))


@given(st.integers(0, 2**31), st.integers(1, 16), st.sampled_from([1e-3, 0.3, 2.0, 1e4]), st.sampled_from([0.0, 0.5]))
def test_states_stay_states_and_moves_follow_the_step(seed: int, top: int, size: float, uphill: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    k = torch.randint(top + 1, (200,), generator=draws).to(torch.float64)
    step = size * torch.randn(200, generator=draws, dtype=torch.float64)
    each = uniforms(seed, 200)
    after = discrete_transition(k, step, top, 3.0, each[0])
    assert bool(((after >= 0) & (after <= top) & (after == after.round())).all())
    move = after - k
    assert bool((move * step >= 0).all())
    at_an_end = (after == 0) | (after == top)
    assert bool((((move - step).abs() < 1) | at_an_end).all())
    after = metropolis_transition(k, step, torch.tensor(0.5), top, 3.0, uphill, each)
    assert bool(((after >= 0) & (after <= top) & (after == after.round())).all())
    assert uphill > 0 or bool(((after - k) * step >= 0).all())


@pytest.mark.parametrize("temperature", [0.0, 0.01, 3.0])
def test_without_uphill_proposals_metropolis_is_the_discrete_state_transition(temperature: float) -> None:
    top, k = 8, torch.arange(9.0).repeat(1000)
    step = 2 * torch.randn(len(k))
    each = uniforms(3, len(k))
    expected = discrete_transition(k, step, top, 3.0, each[0])
    found = metropolis_transition(k, step, torch.tensor(temperature), top, 3.0, 0.0, each)
    jump = propose(step, 3.0, 0.0, *each[:2])
    within = (k + jump >= 0) & (k + jump <= top)
    assert torch.equal(found[within], expected[within])
    assert torch.equal(found[~within], k[~within])  # where the other one goes to the end of the range
    assert torch.equal(expected[~within], torch.where(jump > 0, top, 0.0)[~within])
    assert bool((found != k).any()) and bool((~within).any())


def test_at_temperature_zero_nothing_goes_uphill_and_downhill_moves_are_thinned() -> None:
    k, step = torch.full((DRAWS,), 4.0), torch.full((DRAWS,), 0.1)
    found = metropolis_transition(k, step, torch.tensor(0.0), 8, 3.0, 0.5, uniforms(4, DRAWS))
    law = np.zeros(9)
    law[5] = 0.5 * math.tanh(0.3)
    law[4] = 1 - law[5]
    check_frequencies(found, law)


@given(st.floats(-20, 20), st.floats(0.05, 10))
def test_acceptance_is_balanced(energy: float, temperature: float) -> None:
    up = acceptance(torch.tensor(energy), torch.tensor(temperature)).item()
    down = acceptance(torch.tensor(-energy), torch.tensor(temperature)).item()
    assert max(up, down) == 1
    assert up == pytest.approx(down * math.exp(-energy / temperature), rel=1e-9)


def boltzmann(energies: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp(-(energies - energies.min()) / temperature)
    return weights / weights.sum()


def total_variation(counts: np.ndarray, law: np.ndarray) -> float:
    return 0.5 * float(np.abs(counts / counts.sum() - law).sum())


def test_all_weights_at_once_reach_boltzmann_where_first_order_is_exact() -> None:
    """Energy -sum_i x_i k_i: the step is constant, and dE of first order is the change of the energy."""
    step, temperature, top, chains = torch.tensor([0.9, -0.5, 0.2]), 0.8, 2, 10_000
    k = torch.ones(chains, 3)
    counts = np.zeros(27)
    for t in range(110):
        k = metropolis_transition(
            k, step.expand(chains, 3), torch.tensor(temperature), top, 1.0, 0.5, uniforms(t, chains, 3)
        )
        if t >= 30 and t % 2 == 0:
            counts += np.bincount((k @ torch.tensor([9.0, 3.0, 1.0])).long().numpy(), minlength=27)
    unit = float(step.abs().mean())
    states = np.array(list(itertools.product(range(3), repeat=3)))
    law = boltzmann(-(states @ step.numpy()) / unit, temperature)
    assert total_variation(counts, law) < 0.01
    assert total_variation(counts, boltzmann(-(states @ step.numpy()) / unit, 1.1 * temperature)) > 0.01


def test_one_weight_at_a_time_reaches_boltzmann_for_any_energy() -> None:
    """Three coupled weights of three states, with dE evaluated: 27 energies that first order would get wrong."""
    draws = np.random.default_rng(5)
    energies = torch.tensor(draws.normal(size=27))
    places, temperature, chains = torch.tensor([9.0, 3.0, 1.0]), torch.tensor(0.7), 10_000
    k = torch.ones(chains, 3)
    counts = np.zeros(27)
    for t in range(300):
        i = t % 3
        size, way, third = uniforms(1000 + t, chains)
        jump = torch.zeros(chains, 3)
        jump[:, i] = propose(torch.full((chains,), 0.6), 3.0, 0.5, size, way)
        there = ((k + jump).clamp(0, 2) @ places).long()
        change = energies[there] - energies[(k @ places).long()]
        k[:, i] = metropolis(k[:, i], jump[:, i], change, temperature, 2, third)
        if t >= 60:
            counts += np.bincount((k @ places).long().numpy(), minlength=27)
    law = boltzmann(energies.numpy(), float(temperature))
    assert total_variation(counts, law) < 0.01
    assert total_variation(counts, boltzmann(energies.numpy(), 1.1 * float(temperature))) > 0.01


def test_first_order_energy_is_that_of_the_gradient_in_units_of_its_mean() -> None:
    gradient, lr = torch.tensor([2.0, -1.0, 0.0, 1.0]), 0.05
    jump = torch.tensor([1.0, 1.0, -1.0, -2.0])
    assert torch.allclose(first_order(jump, -lr * gradient), gradient * jump / 1.0)
    assert torch.equal(first_order(jump, torch.zeros(4)), torch.zeros(4))


@pytest.mark.parametrize(("k", "x", "top", "m"), CASES)
def test_the_derivative_is_that_of_the_expectation(k: int, x: float, top: int, m: float) -> None:
    states = torch.full((1,), float(k), requires_grad=True)
    step = torch.full((1,), x, requires_grad=True)
    after = discrete_transition(states, step, top, m, torch.full((1,), 0.5))
    of_state, of_step = torch.autograd.grad(after.sum(), [states, step])
    levels, h = np.arange(top + 1), 1e-6
    slope = float((paper_law(k, x + h, top, m) - paper_law(k, x - h, top, m)) @ levels) / (2 * h)
    assert of_state.item() == 1
    assert of_step.item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
@pytest.mark.parametrize(("k", "x", "top", "m"), CASES)
def test_the_derivative_of_metropolis_is_that_of_the_expectation(
    k: int, x: float, top: int, m: float, temperature: float
) -> None:
    step = torch.full((1,), x, requires_grad=True)
    t = torch.tensor(temperature, requires_grad=True)
    after = metropolis_transition(torch.full((1,), float(k)), step, t, top, m, 0.4, (torch.full((1,), 0.5),) * 3)
    of_step, of_t = torch.autograd.grad(after.sum(), [step, t])
    levels, h, unit = np.arange(top + 1), 1e-6, abs(x)

    def mean(x: float, temperature: float) -> float:
        return float(metropolis_law(k, x, unit, temperature, top, m, 0.4) @ levels)

    assert of_t.item() == pytest.approx((mean(x, temperature + h) - mean(x, temperature - h)) / (2 * h), abs=1e-7)
    assert of_step.item() == pytest.approx((mean(x + h, temperature) - mean(x - h, temperature)) / (2 * h), abs=1e-6)
