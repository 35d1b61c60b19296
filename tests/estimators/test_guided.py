"""Guided ES: its perturbations and estimate by hand, and what right, wrong and random guides do to its cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.engines.base import ControlGradient
from metasched.estimators.agreement import agreement, blocks_of, flat, normalized, unflat
from metasched.estimators.es import EvolutionStrategies
from metasched.estimators.guided import FEWER, GUIDES, SHARE, Guided, orthonormal, stretched
from metasched.runs.local import Judged, Run
from metasched.tracking.metrics import unknown_metrics

STEPS, LAYERS = 12, 4
SIZE = STEPS * LAYERS


class Table(nn.Module):
    """A control with a parameter for each step and layer, on two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Parameter(torch.zeros(STEPS // 2, LAYERS))
        self.late = nn.Parameter(torch.zeros(STEPS // 2, LAYERS))

    def scales(self) -> dict[str, float]:
        return {"early": 2.0}  # and 1 for the other

    def forward(self, progress: torch.Tensor, layers: Sequence[Any]) -> dict[str, torch.Tensor]:
        return {"level": torch.cat([self.early, self.late])}


def slope_of(direction: int = 1) -> torch.Tensor:
    """The true gradient [STEPS, LAYERS], or its opposite."""
    return direction * torch.randn(STEPS, LAYERS, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def runs(planted: Any) -> Callable[..., Any]:
    """Runs whose loss is linear with the slope ``slope_of()``, plus noise, and whose exact gradients are ``exact``."""

    class Own(planted):
        problem = replace(planted.problem, steps=STEPS)

        def gradients(self, runs: Sequence[Run]) -> list[ControlGradient]:
            self.exact += len(runs)
            found = [self.slope(run.seed) for run in runs]
            return [ControlGradient(1.0, 0.5, {"level": g}, int((~g.isfinite()).sum()), 0.0, 0.0) for g in found]

        def judged(self, runs: Sequence[Run]) -> list[Judged]:
            self.plain += len(runs)
            return [Judged(float((run.controls["level"] * slope_of()).sum()), 0.25) for run in runs]

    return lambda exact: Own(exact, lambda controls, seed: 0.0)


def noise(seed: int) -> torch.Tensor:
    return torch.randn(STEPS, LAYERS, generator=torch.Generator().manual_seed(1000 + seed))


def cosine(estimator: Any, runs: Any, seeds: int, steps: int = 4) -> float:
    """Mean cosine, in units of scales, of the estimates after the first few steps to the true gradient."""
    schedule, found = Table(), []
    state = estimator.begin(schedule, runs)
    true = flat(schedule, [slope_of()[: STEPS // 2], slope_of()[STEPS // 2 :]])
    for trial in range(60):
        estimate = estimator.estimate(schedule, runs, [100 * trial + i for i in range(seeds)], state)
        state = estimate.state
        if trial >= steps:
            g = flat(schedule, estimate.found[0].gradient)
            found.append(float(g @ true / (g.norm() * true.norm())))
    return sum(found) / len(found)


def test_perturbations_have_the_covariance_of_the_formula() -> None:
    schedule = Table()
    basis = orthonormal(torch.randn(GUIDES, SIZE, generator=torch.Generator().manual_seed(3)).double())
    drawn = torch.stack([flat(schedule, list(stretched(schedule, basis, seed).values())) for seed in range(20_000)])
    units = drawn / torch.cat([torch.full((SIZE // 2,), 4.0), torch.ones(SIZE // 2)])  # delta = s xi, flat multiplies s
    wanted = SHARE * torch.eye(SIZE) + (1 - SHARE) * SIZE / GUIDES * basis @ basis.T
    assert torch.allclose(units.T @ units / len(units), wanted, atol=0.15)
    assert float(wanted.trace()) == pytest.approx(SIZE)


def test_an_estimate_by_hand(runs: Callable[..., Any]) -> None:
    """The mean of slope times xi / s over the pairs, with the guides that the same call found."""
    schedule, own = Table(), runs(lambda seed: noise(seed))
    estimator = Guided(None, 0.1)
    seeds = list(range(7))
    estimate = estimator.estimate(schedule, own, seeds, estimator.begin(schedule, own))
    (used,) = seeds[: len(seeds) // FEWER]
    assert (own.exact, own.plain) == (1, 14)
    assert estimate.inner_steps == 15 * STEPS
    guide = flat(schedule, [noise(used)[: STEPS // 2], noise(used)[STEPS // 2 :]])
    unit = normalized(guide[None], blocks_of(schedule))
    assert torch.equal(estimate.state["guides"][0], unit[0]) and not bool(estimate.state["guides"][1:].any())
    basis = orthonormal(unit)
    expected = torch.zeros(SIZE)
    for seed in seeds:
        delta = stretched(schedule, basis, seed)
        moved = torch.cat([delta["early"], delta["late"]])
        xi = torch.cat([delta["early"].flatten() / 2, delta["late"].flatten()])
        expected += float((moved * slope_of()).sum()) * xi / len(seeds)
    assert torch.allclose(flat(schedule, estimate.found[0].gradient), expected)
    assert unknown_metrics(f"estimator/{note}" for note in estimate.notes) == []


def test_right_guides_need_far_fewer_pairs(runs: Callable[..., Any]) -> None:
    exact = runs(lambda seed: slope_of() + 0.5 * noise(seed))
    es = cosine(EvolutionStrategies(0.1), exact, 5)
    assert cosine(Guided(None, 0.1), exact, 5) > 1.8 * es


def test_guides_that_point_the_wrong_way_are_as_good(runs: Callable[..., Any]) -> None:
    """And so at least as good as evolution strategies with twice the pairs."""
    right, wrong = (runs(lambda seed, sign=sign: slope_of(sign) + 0.5 * noise(seed)) for sign in (1, -1))
    found = cosine(Guided(None, 0.1), wrong, 5)
    assert found == pytest.approx(cosine(Guided(None, 0.1), right, 5), abs=0.05)
    assert found > cosine(EvolutionStrategies(0.1), right, 10)


def test_random_guides_cost_no_more_than_half_the_pairs(runs: Callable[..., Any]) -> None:
    anywhere = runs(lambda seed: noise(seed))
    assert cosine(Guided(None, 0.1), anywhere, 20) > cosine(EvolutionStrategies(0.1), anywhere, 10)


def test_one_exploding_block_does_not_hide_the_others(runs: Callable[..., Any]) -> None:
    """Early moments explode to numbers whose squares overflow; the late ones still guide."""

    def exploding(seed: int) -> torch.Tensor:
        g = slope_of().clone()
        g[: STEPS // 2] = 1e200 * noise(seed)[: STEPS // 2]
        return g

    assert cosine(Guided(None, 0.1), runs(exploding), 5) > cosine(EvolutionStrategies(0.1), runs(exploding), 5)


def test_runs_that_are_not_finite_give_no_guide(runs: Callable[..., Any]) -> None:
    schedule, own = Table(), runs(lambda seed: torch.full((STEPS, LAYERS), math.nan))
    estimator = Guided(None, 0.1)
    estimate = estimator.estimate(schedule, own, range(5), estimator.begin(schedule, own))
    assert not bool(estimate.state["guides"].any()) and estimate.notes["guides"] == 0
    expected = EvolutionStrategies(0.1).estimate(schedule, own, range(5), {}).found[0]
    assert estimate.found[0].loss == pytest.approx(expected.loss, abs=1.0)
    assert bool(flat(schedule, estimate.found[0].gradient).isfinite().all())


def test_a_state_of_another_size_is_refused(runs: Callable[..., Any]) -> None:
    schedule, own = Table(), runs(noise)
    estimator = Guided(None, 0.1)
    estimator.check(schedule, own, 5, estimator.begin(schedule, own))
    with pytest.raises(MetaschedError, match=r"^state\.estimator\.guides: is "):
        estimator.check(schedule, own, 5, {"guides": torch.zeros(GUIDES, SIZE + 1)})


def test_agreement_in_closed_form() -> None:
    """Two runs at an angle: |m|^2 = (1 + cos) / 2, so a = cos; blocks do not mix; opposite runs agree on nothing."""
    angle = torch.tensor(0.7)
    pair = torch.stack([torch.tensor([1.0, 0.0]), 50 * torch.stack([angle.cos(), angle.sin()])])
    found = agreement(torch.cat([pair, torch.tensor([[3.0], [-4.0]])], 1), {"a": [0, 1], "b": [2]})
    assert found.squares["a"] == pytest.approx(float(angle.cos())) and found.squares["b"] == pytest.approx(-1)
    middle = torch.stack([(angle / 2).cos(), (angle / 2).sin()])
    assert torch.allclose(found.direction[:2], angle.cos().sqrt() * middle) and found.direction[2] == 0


def test_agreement_of_noise_is_zero_in_the_mean() -> None:
    draws = torch.Generator().manual_seed(8)
    squares = [agreement(torch.randn(6, 3, generator=draws), {"a": [0, 1, 2]}).squares["a"] for _ in range(3000)]
    assert abs(sum(squares) / len(squares)) < 0.01


def test_flat_and_back() -> None:
    schedule = Table()
    gradient = [torch.randn_like(p) for p in schedule.parameters()]
    assert torch.equal(flat(schedule, gradient)[: SIZE // 2], 2 * gradient[0].flatten())
    again = unflat(schedule, flat(schedule, gradient))
    assert all(torch.allclose(a, g) for a, g in zip(again, gradient, strict=True))
