"""Searches for bits: against brute force on small problems, and what their sources say of the formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.search.bits import BIT_SEARCHES
from metasched.search.bits.ddpg import Agent, Transition, truncated_normal
from metasched.search.bits.haq import features, index_of_action
from metasched.search.bits.knapsack import least_loss
from metasched.search.bits.problem import BitProblem, Choice, Judge
from metasched.search.config import AllocateConfig

BY_LAYER = [name for name, row in BIT_SEARCHES.items() if not row.by_channel]


def problem(cost: list[list[float]], budget: float, bits: tuple[int, ...] = (), fixed: float = 0.0) -> BitProblem:
    kinds = itertools.cycle(("conv", "linear"))
    layers = tuple(
        Layer(f"l{i}", i / max(1, len(cost) - 1), next(kinds), "weight", 3 + i, 12 * (3 + i), 2.0)  # pyright: ignore
        for i in range(len(cost))
    )
    bits = bits or tuple(range(2, 2 + len(cost[0])))
    return BitProblem(
        layers, bits, tuple(map(tuple, cost)), fixed, budget, "bytes", tuple(100 + i for i in range(len(cost)))
    )


def brute(p: BitProblem) -> list[Choice]:
    return [c for c in itertools.product(range(len(p.bits)), repeat=len(p.layers)) if p.fits(c)]


def run(name: str, p: BitProblem, score: Callable[[Choice], float], **settings: Any) -> Judge:
    judge = Judge(p, score)
    BIT_SEARCHES[name].run(p, judge, AllocateConfig(search=name, **settings), 0)
    return judge


small = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda shape: st.tuples(
        *(
            st.lists(
                st.lists(st.integers(0, 9), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
            )
            for _ in range(2)
        ),
        st.integers(0, 30),
    )
)


@given(small)
def test_the_allocations_that_fit_are_those_of_brute_force(drawn: Any) -> None:
    cost, _, budget = drawn
    p = problem(cost, budget)
    assert [*p.feasible()] == brute(p)
    if not brute(p):
        with pytest.raises(MetaschedError, match=r"allocate\.budget: is .* bytes, and the network takes at least"):
            p.check()
        return
    p.check()
    for choice in itertools.product(range(len(p.bits)), repeat=len(p.layers)):
        kept = p.within(choice)
        assert p.fits(kept) and (kept == choice or not p.fits(choice))


@given(small)
def test_the_knapsack_is_exact(drawn: Any) -> None:
    cost, loss, budget = drawn
    p = problem(cost, budget)
    if not brute(p):
        return

    def total(choice: Choice) -> float:
        return sum(row[b] for row, b in zip(loss, choice, strict=True))

    assert total(least_loss(loss, cost, budget)) == min(map(total, brute(p)))
    found = run("knapsack", p, lambda c: -float(total(c)))
    assert -found.best.score == min(map(total, brute(p)))
    assert len(found.tried) <= len(cost) * (len(p.bits) - 1) + 2


@given(st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, 15))
def test_greedy_is_optimal_for_convex_losses_that_add_up_at_equal_costs(drops: list[list[int]], spare: int) -> None:
    losses = [[sum(sorted(d)[: 3 - b]) for b in range(4)] for d in drops]  # convex: the first bits help most
    losses = [[sum(sorted(d, reverse=True)[b:]) for b in range(4)] for d in drops]
    p = problem([[0.0, 1.0, 2.0, 3.0]] * len(drops), min(spare, 3 * len(drops)))

    def score(choice: Choice) -> float:
        return -float(sum(row[b] for row, b in zip(losses, choice, strict=True)))  # pyright: ignore

    assert run("greedy", p, score).best.score == max(map(score, brute(p)))


def coupled(choice: Choice) -> float:
    """A score with interactions of layers, whose optimum is not that of the sum of single layers."""
    bits = np.array(choice, float) + 2
    return -float((4.0**-bits).sum() + 0.5 * np.prod(1.0 / bits) + 0.01 * abs(bits[0] - bits[-1]))


def four_layers() -> BitProblem:
    sizes = (3.0, 1.0, 2.0, 5.0)
    return problem([[n * b for b in range(2, 6)] for n in sizes], 36.0)


def test_exhaustive_finds_the_optimum_and_says_when_there_is_too_much() -> None:
    p = four_layers()
    found = run("exhaustive", p, coupled, evaluations=256)
    assert found.best.score == max(map(coupled, brute(p))) and len(found.tried) == len(brute(p))
    with pytest.raises(MetaschedError, match=r"exhaustive has more to try than allocate\.evaluations, 10; raise"):
        run("exhaustive", p, coupled, evaluations=10)


@pytest.mark.parametrize("name", ["random", "tpe", "haq"])
def test_a_search_is_a_function_of_its_seed_and_ends_near_the_optimum(name: str) -> None:
    p = four_layers()
    first, again = (run(name, p, coupled, evaluations=30) for _ in range(2))
    assert first.tried == again.tried
    ranks = sorted(map(coupled, brute(p)), reverse=True)
    assert p.fits(first.best.choice) and ranks.index(first.best.score) < len(ranks) // 10
    other = Judge(p, coupled)
    BIT_SEARCHES[name].run(p, other, AllocateConfig(search=name, evaluations=30), 1)
    assert other.tried != first.tried


def test_random_search_can_reach_every_allocation_that_fits() -> None:
    p = problem([[1, 2, 3], [2, 4, 6]], 7)
    assert {t.choice for t in run("random", p, coupled, evaluations=300).tried} == {*brute(p)}


def test_scores_that_are_no_number_lose() -> None:
    p = four_layers()
    for name in BY_LAYER:
        found = run(
            name, p, lambda c: math.nan if c[0] else coupled(c), evaluations=256 if name == "exhaustive" else 30
        )
        assert found.best.choice[0] == 0 and math.isfinite(found.best.score), name


def test_what_costs_more_with_fewer_bits_is_passed_over() -> None:
    p = problem([[5.0, 1.0, 9.0], [1.0, 2.0, 3.0]], 2.0)  # 2 bits of the first layer are slower than 3
    assert p.lower(0, 2) == 1 and p.lower(0, 1) is None
    assert p.within((2, 2)) == (1, 0) == p.cheapest
    for name in BY_LAYER:
        assert run(name, p, coupled, evaluations=20).best.choice == (1, 0), name


# --- HAQ ---


@pytest.mark.parametrize(("low", "high"), [(1, 8), (2, 8), (3, 7), (1, 7), (4, 4)])
def test_the_map_of_actions_is_that_of_haq_with_halves_up_and_stays_in_range(low: int, high: int) -> None:
    for a in np.linspace(0, 1, 1001):
        v = (high - low + 1) * a + low - 0.5
        wanted = min(max(math.floor(v + 0.5), low), high)
        assert low + index_of_action(float(a), high - low + 1) == wanted
    assert low + index_of_action(0.0, high - low + 1) == low and low + index_of_action(1.0, high - low + 1) == high


def test_numpys_round_would_leave_the_range() -> None:
    assert np.round((8 - 1 + 1) * 0.0 + 1 - 0.5) == 0  # 1 to 8 bits: the trap that the map avoids
    assert np.round((7 - 1 + 1) * 1.0 + 1 - 0.5) == 8  # 1 to 7 bits


def test_each_number_of_bits_has_the_same_share_of_actions() -> None:
    found = [index_of_action((i + 0.5) / 700, 7) for i in range(700)]
    assert np.bincount(found).tolist() == [100] * 7


def test_the_truncated_normal_has_its_distribution() -> None:
    uniform = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for mean, sigma in ((0.5, 0.5), (0.1, 0.2), (0.95, 0.4)):
        drawn = truncated_normal(torch.tensor(mean), sigma, uniform)
        edges = (0 - mean) / sigma, (1 - mean) / sigma
        wanted = stats.truncnorm(*edges, loc=mean, scale=sigma).ppf(uniform.numpy())
        np.testing.assert_allclose(drawn.numpy(), wanted, atol=1e-9)
    assert float(truncated_normal(torch.tensor(0.3), 1e-6, torch.tensor(0.5))) == pytest.approx(0.3)


def test_the_agent_learns_which_action_pays() -> None:
    agent, state = Agent(2, memory=500, seed=0), torch.tensor([1.0, 0.0])
    before = agent.actor(state.float()).item()
    for _ in range(200):
        action = agent.anything()
        agent.remember(Transition(state, action, -((action - 0.8) ** 2), state, last=True))
    for _ in range(200):
        agent.learn()
    after = agent.actor(state.float()).item()
    assert abs(after - 0.8) < 0.6 * abs(before - 0.8)


@pytest.mark.slow
def test_rewards_reach_earlier_steps_through_the_critic() -> None:
    """Of two steps only the last one is rewarded, by the first one's action: Q of the first step must see it."""
    agent = Agent(1, memory=2000, seed=1)
    first, second = torch.tensor([0.0]), torch.tensor([1.0])
    for _ in range(400):
        a, b = agent.anything(), agent.anything()
        agent.remember(Transition(first, a, 0.0, second, last=False))
        agent.remember(Transition(second, b, b, second, last=True))
    for _ in range(300):
        agent.learn()
    q = agent.critic(torch.tensor([[1.0, 0.1], [1.0, 0.9]], dtype=torch.float32)).flatten()
    assert q[1] - q[0] > 0.4  # of 0.8


def test_features_are_scaled_over_the_layers_and_finite_for_one() -> None:
    found = features(four_layers())
    assert found.shape == (4, 7) and found.amin() == 0 and found.amax() == 1
    assert bool(features(problem([[1.0, 2.0]], 2.0)).isfinite().all())


@pytest.mark.slow
def test_exploration_decay_narrows_the_search() -> None:
    p = four_layers()
    wide, narrow = (run("haq", p, coupled, evaluations=50, exploration_decay=d) for d in (1.0, 0.5))
    assert len(narrow.tried) < len(wide.tried)
