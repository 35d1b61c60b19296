"""Weighted exact hypergradients: blocks that agree count, blocks that explode or point anywhere do not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from metasched.core.errors import MetaschedError
from metasched.estimators import build_estimator
from metasched.estimators.weighted import Weighted
from metasched.meta.config import MetaConfig
from metasched.tracking.metrics import unknown_metrics

HALF = 6  # of the steps of the planted schedule, whose two parameters are early and late steps
DOWN = torch.linspace(1.0, 2.0, HALF)


def noise(seed: int) -> torch.Tensor:
    return torch.randn(HALF, generator=torch.Generator().manual_seed(seed))


def estimate(planted: Any, schedule: Any, slope: Any, seeds: range = range(8)) -> Any:
    runs = planted(slope, lambda controls, seed: 0.0)
    return Weighted(None).estimate(schedule, runs, seeds, {})


def test_runs_that_say_the_same_give_their_direction(planted: Any, schedule: Any) -> None:
    """In units of the scales, which are 2 for the early steps: the gradient in the parameters is u / s."""
    found = estimate(planted, schedule, lambda seed: torch.cat([DOWN, -DOWN]) * (1 + seed))
    early, late = found.found[0].gradient
    assert torch.allclose(early, DOWN / DOWN.norm() / 2) and torch.allclose(late, -DOWN / DOWN.norm())
    assert found.notes["agreement/early"] == pytest.approx(1) and found.notes["exact_runs"] == 8
    assert found.inner_steps == 8 * 2 * HALF
    assert unknown_metrics(f"estimator/{name}" for name in found.notes) == []


def test_noise_of_any_size_in_one_block_leaves_the_other(planted: Any, schedule: Any) -> None:
    """In the mean of the runs as they are, early steps of 1e12 would be everything."""

    def slope(seed: int) -> torch.Tensor:
        return torch.cat([1e12 * noise(seed), DOWN + 0.1 * noise(100 + seed)])

    found = estimate(planted, schedule, slope)
    early, late = found.found[0].gradient
    assert float(late @ DOWN / (late.norm() * DOWN.norm())) > 0.99 and float(late.norm()) > 0.95
    assert 2 * float(early.norm()) < 0.5 and found.notes["agreement/early"] < 0.2


def test_runs_that_are_not_finite_are_left_out(planted: Any, schedule: Any) -> None:
    def slope(seed: int) -> torch.Tensor:
        return torch.cat([DOWN, DOWN]) * (math.nan if seed % 2 else 1.0)

    found = estimate(planted, schedule, slope)
    assert found.notes["exact_runs"] == 4 and bool(torch.cat(found.found[0].gradient).isfinite().all())


def test_a_single_finite_run_agrees_with_nothing(planted: Any, schedule: Any) -> None:
    found = estimate(planted, schedule, lambda seed: torch.cat([DOWN, DOWN]) * (math.nan if seed else 1.0), range(2))
    assert found.notes == {"exact_runs": 1.0} and len(found.found) == 2


def test_one_run_is_refused() -> None:
    with pytest.raises(MetaschedError, match=r"^meta\.runs: weighted weighs estimates by their spread"):
        build_estimator(MetaConfig(estimator="weighted", runs=1))
