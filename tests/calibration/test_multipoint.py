"""Multipoint: the error falls exponentially in the number of points, and a budget says how many a channel gets."""

from __future__ import annotations

import pytest
import torch

from metasched.calibration.multipoint import next_point, points_of
from metasched.quantizers.levels import integers

BALANCED = {bits: integers(bits, signed=True, balanced=True) for bits in (2, 3, 4)}


@pytest.mark.parametrize("bits", BALANCED)
def test_the_error_falls_exponentially(bits: int) -> None:
    """By at least 0.6 a point in the geometric mean (measured in the literature notes: 0.48, 0.32, 0.10)."""
    w = torch.randn(16, 64)
    errors = [w.square().sum(1)]
    for n in range(1, 6):
        found = points_of(w, BALANCED[bits], n)
        assert found.integers.shape == (n, 16, 64)
        errors.append((w - found.weight).square().sum(1))
    series = torch.stack(errors).sqrt().mean(1)
    ratios = series[1:] / series[:-1]
    assert float(ratios.max()) <= 0.6
    assert float((series[5] / series[1]) ** 0.25) <= {2: 0.6, 3: 0.4, 4: 0.2}[bits]


def test_no_point_raises_the_error_of_any_channel() -> None:
    w = torch.randn(16, 10)
    last = w.square().sum(1)
    for n in range(1, 5):
        error = (w - points_of(w, BALANCED[2], n).weight).square().sum(1)
        assert bool((error <= last + 1e-15).all())
        last = error


def test_a_vector_on_its_levels_is_one_point() -> None:
    w = 0.37 * torch.tensor([[-3.0, 2.0, 0.0, 1.0], [3.0, -1.0, 1.0, 2.0]])
    found = points_of(w, BALANCED[3], 4, torch.eye(4)[None], budget=1e-9)
    assert found.counts.tolist() == [1, 1]
    torch.testing.assert_close(found.weight, w)


def test_a_point_is_the_best_ternary_vector() -> None:
    """For ternary levels the optimum keeps the k largest |w|, for the k with the largest (sum |w|)^2 / k."""
    w = torch.randn(20, 12)
    q, scale = next_point(w, BALANCED[2])
    error = (w - q * scale[:, None]).square().sum(1)
    sorted_, counts = w.abs().sort(1, descending=True).values, torch.arange(1.0, 13)
    best = w.square().sum(1) - (sorted_.cumsum(1).square() / counts).amax(1)
    assert bool((error >= best - 1e-12).all()) and float((error / best).mean()) <= 1.01


def test_a_budget_gives_each_channel_as_few_points_as_it_takes() -> None:
    w, x = torch.randn(24, 16), torch.randn(100, 16) @ torch.randn(16, 16)
    gram, y = (x.mT @ x)[None], x @ w.mT
    found = points_of(w, BALANCED[3], 8, gram, budget=0.01)
    assert len(set(found.counts.tolist())) > 1
    for c in range(0, 24, 8):
        n = int(found.counts[c])
        errors = [
            float(
                (y[:, c] - x @ points_of(w[c : c + 1], BALANCED[3], k).weight[0]).square().sum()
                / y[:, c].square().sum()
            )
            for k in range(1, n + 1)
        ]
        assert errors[-1] <= 0.01 and all(e > 0.01 for e in errors[:-1])


def test_zeros_stay_zeros() -> None:
    found = points_of(torch.zeros(2, 3), BALANCED[2], 2)
    assert not found.weight.any() and found.counts.tolist() == [0, 0]
