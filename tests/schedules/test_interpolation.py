"""Interpolation: exact at knots, against numpy, elementwise, differentiable in the values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metasched.schedules.base import progress_of_steps
from metasched.schedules.interpolation import Interpolation, interpolate

KINDS: tuple[Interpolation, ...] = ("linear", "previous")


@st.composite
def curves(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Irregular knots [K] from 0 to 1 and values [K, L] of very different sizes."""
    inner = draw(st.sets(st.floats(1e-9, 1 - 1e-9), max_size=20))
    knots = torch.tensor([0.0, *sorted(inner), 1.0])
    shape = (len(knots), draw(st.integers(1, 4)))
    numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
    flat = draw(st.lists(numbers, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return knots, torch.tensor(flat).reshape(shape)


def bits(x: torch.Tensor) -> list[int]:
    return x.detach().contiguous().view(torch.int64).flatten().tolist()


@given(curves())
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("kind", KINDS)
def test_a_knot_gives_its_own_value_bit_for_bit(kind: Interpolation, curve: tuple[torch.Tensor, torch.Tensor]) -> None:
    knots, values = curve
    assert bits(interpolate(knots, knots, values, kind)) == bits(values)


@pytest.mark.parametrize("kind", KINDS)
def test_negative_zero_survives_at_a_knot(kind: Interpolation) -> None:
    knots, values = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[-0.0], [-0.0], [-0.0]])
    assert bits(interpolate(knots, knots, values, kind)) == bits(values)


@given(curves(), st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_linear_matches_numpy_and_stays_between_its_knots(
    curve: tuple[torch.Tensor, torch.Tensor], at: list[float]
) -> None:
    knots, values = curve
    got = interpolate(torch.tensor(at), knots, values, "linear").numpy()
    for column in range(values.shape[1]):
        v = values[:, column].numpy()
        expected = np.interp(at, knots.numpy(), v)
        np.testing.assert_allclose(got[:, column], expected, rtol=1e-12, atol=1e-12 * max(1.0, np.abs(v).max()))
    right = np.searchsorted(knots.numpy(), at, side="right").clip(1, len(knots) - 1)
    low = np.minimum(values.numpy()[right - 1], values.numpy()[right])
    high = np.maximum(values.numpy()[right - 1], values.numpy()[right])
    assert (low <= got).all() and (got <= high).all()


def test_just_before_a_knot_the_value_has_not_passed_it() -> None:
    knots, values = (
        torch.tensor([0.0, 0.01, 0.03, 1.0]),
        torch.tensor([[-1.0, 0.9], [-1.0, 0.9], [0.3, 0.3], [0.3, 0.3]]),
    )
    u = torch.nextafter(knots[2:3], torch.tensor(0.0))
    assert (u - 0.01) / (knots[2] - 0.01) == 1 and -1 + (values[2, 0] - -1) > 0.3  # both steps round up here
    assert interpolate(u, knots, values, "linear").tolist() == [[0.3, 0.3]]


@given(curves(), st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_previous_takes_the_last_knot_that_is_not_later(
    curve: tuple[torch.Tensor, torch.Tensor], at: list[float]
) -> None:
    knots, values = curve
    got = interpolate(torch.tensor(at), knots, values, "previous")
    for row, u in zip(got.tolist(), at, strict=True):
        last = max(k for k, knot in enumerate(knots.tolist()) if knot <= u)
        assert row == values[last].tolist()


def test_a_straight_line_is_reproduced() -> None:
    knots = torch.tensor([0.0, 0.1, 0.35, 0.8, 1.0])
    u = progress_of_steps(1000)
    got = interpolate(u, knots, torch.stack([2 - 3 * knots, knots], dim=1), "linear")
    torch.testing.assert_close(got, torch.stack([2 - 3 * u, u], dim=1), rtol=0, atol=1e-14)


@given(st.floats(-1e3, 1e3, allow_subnormal=False))
@settings(deadline=None, max_examples=30)
def test_equal_values_are_kept_exactly(value: float) -> None:
    knots = progress_of_steps(24)
    assert set(interpolate(progress_of_steps(997), knots, torch.full((24, 1), value), "linear").flatten().tolist()) == {
        value
    }


def test_a_step_has_the_same_bits_alone_and_among_others() -> None:
    generator = torch.Generator().manual_seed(0)
    knots, values = progress_of_steps(25), torch.rand(25, 7, generator=generator)
    u = progress_of_steps(101)
    together = interpolate(u, knots, values, "linear")
    for t in range(101):
        assert bits(interpolate(u[t : t + 1], knots, values, "linear")) == bits(together[t])
    every_third = interpolate(u[::3], knots, values[:, 2:3], "linear")
    assert bits(every_third) == bits(together[::3, 2:3])


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_against_finite_differences(kind: Interpolation) -> None:
    generator = torch.Generator().manual_seed(1)
    knots = torch.tensor([0.0, 0.2, 0.55, 1.0])
    values = torch.rand(4, 3, generator=generator)
    u = torch.tensor([0.0, 0.07, 0.2, 0.5, 0.54, 0.8, 1.0])  # on knots and on both sides of the middle
    weights = torch.rand(7, 3, generator=generator)

    def objective(v: torch.Tensor) -> torch.Tensor:
        return (weights * interpolate(u, knots, v, kind).exp()).sum()

    variable = values.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(variable), variable)
    h = 1e-6
    for index in np.ndindex(4, 3):
        up, down = values.clone(), values.clone()
        up[index] += h
        down[index] -= h
        slope = (objective(up) - objective(down)) / (2 * h)
        torch.testing.assert_close(gradient[index], slope, rtol=1e-8, atol=1e-8)


def test_second_derivatives_flow_through_the_values() -> None:
    values = torch.rand(4, 2, generator=torch.Generator().manual_seed(2)).requires_grad_()
    u, knots = torch.tensor([0.0, 0.3, 0.9]), torch.tensor([0.0, 0.2, 0.55, 1.0])
    assert torch.autograd.gradgradcheck(lambda v: interpolate(u, knots, v, "linear") ** 3, (values,))


@pytest.mark.parametrize("u", [-1e-9, 1 + 1e-9, float("nan"), float("inf")])
def test_progress_outside_the_run_is_refused(u: float) -> None:
    with pytest.raises(AssertionError, match="progress"):
        interpolate(torch.tensor([0.5, u]), torch.tensor([0.0, 1.0]), torch.zeros(2, 1), "linear")


@pytest.mark.parametrize(
    "knots", [[0.0], [0.1, 1.0], [0.0, 0.9], [0.0, 0.5, 0.5, 1.0], [0.0, 0.6, 0.4, 1.0], [0.0, float("nan"), 1.0]]
)
def test_bad_knots_are_refused(knots: list[float]) -> None:
    with pytest.raises(AssertionError):
        interpolate(torch.tensor([0.5]), torch.tensor(knots), torch.zeros(len(knots), 1), "linear")


def test_mixed_dtypes_and_shapes_are_refused() -> None:
    u, knots = torch.tensor([0.5]), torch.tensor([0.0, 1.0])
    with pytest.raises(AssertionError):
        interpolate(u.float(), knots.double(), torch.zeros(2, 1).double(), "linear")
    with pytest.raises(AssertionError):
        interpolate(u, knots, torch.zeros(3, 1), "linear")
    with pytest.raises(AssertionError):
        interpolate(u, knots, torch.zeros(2), "linear")
