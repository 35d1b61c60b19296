"""The inverse-variance mix: its weight against numpy on planted answers, its error, and what becomes of bad parts."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed, generator
from metasched.estimators import build_estimator
from metasched.estimators.es import EvolutionStrategies
from metasched.estimators.mixed import ES, EXACT, KEEP, Mixed
from metasched.estimators.perturbation import direction
from metasched.meta.config import MetaConfig

STEPS = 12
SIGMA = 0.5
SCALES = np.array([2.0] * (STEPS // 2) + [1.0] * (STEPS // 2))
TRUTH = torch.linspace(-1, 1, STEPS)


def noise(seed: int, size: float) -> torch.Tensor:
    return size * torch.randn(STEPS, generator=generator(seed, "planted"))


def linear(values: torch.Tensor, seed: int) -> float:
    return float(TRUTH @ values)


def noisy(size: float) -> Callable[[int], torch.Tensor]:
    return lambda seed: TRUTH + noise(seed, size)


def mixed() -> Mixed:
    return Mixed(noise_floor=0.0, sigma=SIGMA)


def seeds_of(step: int, n: int = 4) -> list[int]:
    return [derive_seed(0, "test", step, i) for i in range(n)]


def flat(gradient: Sequence[torch.Tensor]) -> np.ndarray:
    return torch.cat([g.flatten() for g in gradient]).numpy()


def terms(schedule: nn.Module, seeds: Sequence[int]) -> np.ndarray:
    """What each pair says, [n, STEPS], of the noiseless linear loss."""
    deltas = np.stack([np.concatenate([d.numpy() for d in direction(schedule, seed).values()]) for seed in seeds])
    rises = deltas @ TRUTH.numpy()
    return rises[:, None] * deltas / SCALES**2


def variance(estimates: np.ndarray) -> float:
    return float((np.cov((estimates * SCALES).T, ddof=1)).trace() / len(estimates))


def test_the_weight_is_the_inverse_of_the_variance_and_moves_with_its_average(planted, schedule):
    averages = None
    state = mixed().begin(schedule, planted(noisy(0.3), linear))
    for step, size in enumerate([0.3, 0.05, 2.0]):
        seeds = seeds_of(step)
        exact = np.stack([(TRUTH + noise(seed, size)).numpy() for seed in seeds])
        es = terms(schedule, seeds)
        now = np.log([variance(exact), variance(es)])
        averages = now if averages is None else KEEP * averages + (1 - KEEP) * now
        a, b = np.exp(np.maximum(now, averages))
        w = b / (a + b)
        estimate = mixed().estimate(schedule, planted(noisy(size), linear), seeds, state)
        found, state, inner_steps, notes, line = estimate[:5]
        np.testing.assert_allclose(flat(found[0].gradient), w * exact.mean(0) + (1 - w) * es.mean(0), rtol=1e-9)
        assert notes["exact_weight"] == pytest.approx(w, rel=1e-9)
        assert notes["exact_norm"] == pytest.approx(np.linalg.norm(exact.mean(0) * SCALES))
        assert notes["es_norm"] == pytest.approx(np.linalg.norm(es.mean(0) * SCALES))
        x, y = exact.mean(0) * SCALES, es.mean(0) * SCALES
        assert notes["cosine"] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        np.testing.assert_allclose([float(state[EXACT]), float(state[ES])], averages, rtol=1e-9)
        assert (len(found), inner_steps, line) == (1, 3 * 4 * STEPS, None)
        assert (found[0].loss, found[0].diagnostics.score, found[0].diagnostics.nonfinite) == (1.0, 0.5, 0)


@pytest.mark.parametrize("exact", [0.3, 1.0, 6.0])
def test_the_mix_is_better_than_either_part(planted, schedule, exact):
    """Squared errors over 100 repetitions: that of the mix is at most 5 % above the better part's, mostly below."""
    errors = []
    for step in range(100):
        seeds = seeds_of(step, n=8)
        (mix,) = (
            mixed()
            .estimate(
                schedule, planted(noisy(exact), linear), seeds, mixed().begin(schedule, planted(noisy(0.3), linear))
            )
            .found
        )
        (es,) = EvolutionStrategies(SIGMA).estimate(schedule, planted(noisy(0.3), linear), seeds, {}).found
        mean = torch.stack([TRUTH + noise(seed, exact) for seed in seeds]).mean(0)
        parts = (flat(mix.gradient), mean.numpy(), flat(es.gradient))
        errors.append([np.sum(((g - TRUTH.numpy()) * SCALES) ** 2) for g in parts])
    of_mix, *of_parts = np.mean(errors, axis=0)
    assert of_mix < 1.05 * min(of_parts)
    assert max(of_parts) > 1.2 * min(of_parts)  # so that it is not the two being alike


def es_part(schedule: nn.Module, seeds: Sequence[int]) -> np.ndarray:
    return terms(schedule, seeds).mean(0)


@pytest.mark.parametrize("size", [1e6, 1e30])
def test_an_explosion_costs_the_exact_part_its_weight(planted, schedule, size):
    seeds = seeds_of(0)

    def slope(seed: int) -> torch.Tensor:
        return TRUTH + noise(seed, size if seed == seeds[1] else 0.1)

    runs = planted(slope, linear)
    found, state, _, notes, _ = mixed().estimate(schedule, runs, seeds, mixed().begin(schedule, runs))[:5]
    assert notes["exact_weight"] < 1e3 / size**2
    np.testing.assert_allclose(flat(found[0].gradient), es_part(schedule, seeds), rtol=1e-3)
    after = mixed().estimate(schedule, planted(noisy(1e-3), linear), seeds, state).notes["exact_weight"]
    fresh = (
        mixed()
        .estimate(schedule, planted(noisy(1e-3), linear), seeds, mixed().begin(schedule, runs))
        .notes["exact_weight"]
    )
    assert after < 0.1 < 0.99 < fresh  # it is not forgotten at once


@pytest.mark.parametrize(("broken", "weight"), [(1, None), (2, None), (3, 0.0), (4, 0.0)])
def test_runs_that_are_not_finite_are_left_out_and_of_one_alone_nothing_is_known(planted, schedule, broken, weight):
    seeds = seeds_of(0)

    def slope(seed: int) -> torch.Tensor:
        return TRUTH + noise(seed, math.nan if seed in seeds[:broken] else 0.1)

    runs = planted(slope, linear)
    (found,), state, _, notes, _ = mixed().estimate(schedule, runs, seeds, mixed().begin(schedule, runs))[:5]
    assert notes["exact_runs"] == 4 - broken and found.diagnostics.nonfinite == 0
    w = notes["exact_weight"]
    if weight is None:
        assert 0.5 < w < 1
        rest = np.mean([slope(seed).numpy() for seed in seeds[broken:]], axis=0)
        np.testing.assert_allclose(flat(found.gradient), w * rest + (1 - w) * es_part(schedule, seeds), rtol=1e-9)
    else:
        assert w == weight and bool(state[EXACT].isnan())
        np.testing.assert_allclose(flat(found.gradient), es_part(schedule, seeds), rtol=1e-9)


@pytest.mark.parametrize("loss", [0.7, math.nan])
def test_pairs_that_see_nothing_have_no_say(planted, schedule, loss):
    seeds = seeds_of(0)
    runs = planted(lambda seed: TRUTH + noise(seed, 5.0), lambda values, seed: loss)
    (found,), state, _, notes, _ = mixed().estimate(schedule, runs, seeds, mixed().begin(schedule, runs))[:5]
    assert notes["exact_weight"] == 1 and bool(state[ES].isnan())
    mean = torch.stack([TRUTH + noise(seed, 5.0) for seed in seeds]).mean(0)
    np.testing.assert_allclose(flat(found.gradient), mean.numpy(), rtol=1e-12)


def test_where_both_parts_fail_the_estimate_says_so(planted, schedule):
    runs = planted(lambda seed: TRUTH * math.inf, lambda values, seed: math.nan)
    (found,) = mixed().estimate(schedule, runs, seeds_of(0), mixed().begin(schedule, runs)).found
    assert found.diagnostics.nonfinite > 0


def test_its_state_is_saved_and_resumed_exactly(planted, schedule):
    first = mixed().estimate(
        schedule, planted(noisy(0.3), linear), seeds_of(0), mixed().begin(schedule, planted(noisy(0.3), linear))
    )
    buffer = io.BytesIO()
    torch.save(dict(first.state), buffer)
    buffer.seek(0)
    resumed: Any = torch.load(buffer, weights_only=True)
    one, other = (
        mixed().estimate(schedule, planted(noisy(2.0), linear), seeds_of(1), state) for state in (first.state, resumed)
    )
    assert one.notes == other.notes and one.notes["exact_weight"] != first.notes["exact_weight"]


@pytest.mark.parametrize("estimator", ["mixed", "auto"])
def test_one_run_has_no_spread(estimator):
    with pytest.raises(MetaschedError, match=r"meta\.runs: .*there is 1; set it to 4"):
        build_estimator(MetaConfig(estimator=estimator, runs=1))
    assert build_estimator(MetaConfig(estimator=estimator, runs=2, sigma=0.25)).sigma == 0.25  # type: ignore[attr-defined]
