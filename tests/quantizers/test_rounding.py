"""Rounding: levels, no bias, variance, exact zero, idempotence, and the hard quantizer as limit, by hypothesis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metasched.quantizers.hard import hard
from metasched.quantizers.levels import LevelSet, level_set
from metasched.quantizers.rounding import rounded
from metasched.quantizers.stair import stair

N = 256
GRID = (torch.arange(N, dtype=torch.float64) + 0.5) / N  # uniform numbers: one in each N-th part of [0, 1)
NAMES = ["binary", "ternary", "int2", "uint3", "balanced4", "pow2_4", "states2", "midrise2", "normal3"]
level_sets = st.sampled_from([level_set(name) for name in NAMES])
values = st.floats(-10, 10)
shares = st.floats(0, 1)


def drawn(x: float | torch.Tensor, levels: LevelSet, randomness: float) -> torch.Tensor:
    """R(x) of a number, or of one number for each of the grid: [N]."""
    return rounded(torch.as_tensor(x).expand(N).contiguous(), levels, torch.tensor(randomness), GRID)


def between(levels: LevelSet, gap: int, share: float) -> tuple[float, float, float]:
    """The two levels of a gap, and the value that lies at this share of the way."""
    k = gap % len(levels.jumps)
    return levels.levels[k], levels.levels[k + 1], levels.levels[k] + share * levels.jumps[k]


@given(level_sets, st.integers(0, 20), st.integers(0, N))
def test_stochastic_rounding_has_no_bias_and_the_variance_of_its_two_neighbours(
    levels: LevelSet, gap: int, at: int
) -> None:
    lower, upper, x = between(levels, gap, at / N)
    found = drawn(x, levels, 1.0)
    assert {*found.tolist()} <= {lower, upper}
    assert found.mean().item() == pytest.approx(x, abs=1.01 * (upper - lower) / N)
    exact = (x - lower) * (upper - x)
    assert found.var(correction=0).item() == pytest.approx(exact, abs=1.01 * (upper - lower) ** 2 / N)


@given(st.integers(-8, 6), st.integers(0, N - 1))
def test_mean_and_variance_are_exact_where_all_numbers_are_binary_fractions(lower: int, at: int) -> None:
    x = lower + at / N
    found = drawn(x, level_set("int4"), 1.0)
    assert found.mean().item() == x
    assert (found - x).square().mean().item() == (x - lower) * (lower + 1 - x)


@given(level_sets, values, shares)
def test_every_value_is_a_neighbouring_level(levels: LevelSet, x: float, randomness: float) -> None:
    found = drawn(x, levels, randomness)
    q = torch.tensor(levels.levels)
    bounded = min(max(x, levels.levels[0]), levels.levels[-1])
    lower, upper = q[q <= bounded].max(), q[q >= bounded].min()
    assert bool(((found == lower) | (found == upper)).all())


@given(level_sets, shares)
def test_levels_stay_where_they_are_and_rounding_twice_is_rounding_once(levels: LevelSet, randomness: float) -> None:
    for level in levels.levels:  # zero among them, where there is one
        assert drawn(level, levels, randomness).eq(level).all()
    once = drawn(torch.linspace(-3, 3, N), levels, randomness)
    assert torch.equal(rounded(once, levels, torch.tensor(randomness), GRID.flip(0)), once)


@given(level_sets, st.lists(values, min_size=1, max_size=20), st.floats(0, 1, exclude_max=True))
def test_without_randomness_it_is_the_hard_quantizer(levels: LevelSet, x: list[float], number: float) -> None:
    at = torch.tensor([*x, *levels.thresholds])
    found = rounded(at, levels, torch.tensor(0.0), torch.full_like(at, number))
    assert torch.equal(found, hard(at, levels))


@given(level_sets, st.integers(0, 20), shares, shares)
def test_in_between_the_mean_is_a_blend_of_nearest_and_float(
    levels: LevelSet, gap: int, share: float, randomness: float
) -> None:
    lower, upper, x = between(levels, gap, share)
    nearest = hard(torch.tensor(x), levels).item()
    expected = (1 - randomness) * nearest + randomness * x
    assert drawn(x, levels, randomness).mean().item() == pytest.approx(expected, abs=1.01 * (upper - lower) / N)


@pytest.mark.parametrize("name", NAMES)
def test_its_derivatives_are_those_of_the_mean(name: str) -> None:
    levels = level_set(name)
    x, kappa = (3 * torch.randn(200)).requires_grad_(), torch.tensor(0.3, requires_grad=True)
    g = torch.randn(200)
    out = rounded(x, levels, kappa, torch.rand(200))
    of_x, of_kappa = torch.autograd.grad((out * g).sum(), [x, kappa])
    low, high = levels.levels[0], levels.levels[-1]
    assert of_kappa.item() == pytest.approx(((x.clamp(low, high) - hard(x, levels)) * g).detach().sum().item())
    through = stair(x, levels, mean=torch.tensor(0.0), scale=torch.tensor(0.5), family="uniform", forward="expectation")
    (window,) = torch.autograd.grad((through * g).sum(), x)
    inside = ((x > low) & (x < high)).to(x.dtype)
    torch.testing.assert_close(of_x, 0.7 * window + 0.3 * inside * g)


@given(st.sampled_from(["ternary", "int3", "uint2"]), values)
def test_with_noise_that_gets_narrower_ana_has_the_same_two_ends(name: str, x: float) -> None:
    """Its stair under uniform noise of half a quantum is stochastic rounding, where levels are evenly spaced."""
    levels, zero = level_set(name), torch.tensor(0.0)
    for randomness in (0.0, 1.0):
        theirs = stair(
            torch.full((N,), x),
            levels,
            mean=zero,
            scale=torch.tensor(randomness / 2),
            family="uniform",
            forward="random",
            uniform=GRID,
        )
        assert abs(float(theirs.sum() - drawn(x, levels, randomness).sum())) <= 1.01 * levels.jumps[0]


def test_what_is_not_a_number_stays_so_and_infinity_is_the_outermost_level() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf])
    for randomness in (0.0, 0.4, 1.0):
        found = rounded(x, level_set("normal2"), torch.tensor(randomness), torch.full((3,), 0.4))
        assert found[0].isnan() and found[1:].tolist() == [level_set("normal2").levels[k] for k in (-1, 0)]
