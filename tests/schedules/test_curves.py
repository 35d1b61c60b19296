"""Each curve against a formula written out in numpy or plain Python."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch

from metasched.core.layer import Layer
from metasched.schedules.base import progress_of_steps
from metasched.schedules.curves import (
    RAMPS,
    Curve,
    HandCoded,
    Window,
    bounded_window,
    constant,
    falling,
    rising,
    steps,
)
from metasched.schedules.interpolation import Interpolation, interpolate

U = progress_of_steps(1000)
u = U.numpy()


def network(num_layers: int) -> list[Layer]:
    return [
        Layer(f"layer{i}", i / max(num_layers - 1, 1), "conv", "weight+activation", 9, 81, 1.585)
        for i in range(num_layers)
    ]


def close(got: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got.numpy(), np.broadcast_to(expected, tuple(got.shape)), rtol=0, atol=1e-12)


NUMPY_RAMPS = {
    "linear": lambda d: 1 - u,
    "cosine": lambda d: np.cos(np.pi * u / 2) ** 2,  # the half-angle form
    "cubic": lambda d: 1 - 3 * u + 3 * u**2 - u**3,
    "input_first": lambda d: np.interp(u, [0.5 * d, 0.5 + 0.5 * d], [1.0, 0.0]),
    "output_first": lambda d: np.interp(u, [0.5 * (1 - d), 0.5 + 0.5 * (1 - d)], [1.0, 0.0]),
}


@pytest.mark.parametrize("num_layers", [1, 2, 5])
@pytest.mark.parametrize("name", RAMPS)
def test_ramps(name: str, num_layers: int) -> None:
    layers = network(num_layers)
    expected = np.stack([NUMPY_RAMPS[name](layer.depth) for layer in layers], axis=1)
    close(RAMPS[name](U, layers), expected)
    close(falling(U, layers, ramp=name, start=0.5), 0.5 * expected)
    close(rising(U, layers, ramp=name), 1 - expected)


def test_every_ramp_has_an_oracle() -> None:
    assert NUMPY_RAMPS.keys() == RAMPS.keys()


def test_input_first_anneals_the_input_layer_in_the_first_half() -> None:
    first = RAMPS["input_first"](torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), network(2))
    assert first[:, 0].tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert first[:, 1].tolist() == [1.0, 1.0, 1.0, 0.5, 0.0]
    last = RAMPS["output_first"](torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), network(2))
    assert last.tolist() == first.flip(1).tolist()


def test_bounded_window_by_loops() -> None:
    windows = [
        Window(0.0, 1.0, 1),
        Window(0.2, 0.7, 2),
        Window(0.3, 0.31, 14),
        Window(0.0, 0.5, 0),
        Window(0.1, 0.9, 0.5),
    ]
    got = bounded_window(U, network(5), beta=-0.7, windows=lambda num_layers: windows[:num_layers])
    for t, at in enumerate(u.tolist()):
        for column, (start, end, power) in enumerate(windows):
            clipped = min(max(at, start), end)
            expected = -0.7 * math.pow((end - clipped) / (end - start), power)
            assert abs(got[t, column].item() - expected) <= 1e-12


def test_bounded_window_ends_at_positive_zero() -> None:
    got = bounded_window(U, network(1), beta=-0.5, windows=lambda _: [Window(0.1, 0.6, 3)])
    after = got[U >= 0.6]
    assert (after == 0).all() and not torch.signbit(after).any()
    assert (got[U < 0.6] < 0).all()
    assert (got[U <= 0.1] == -0.5).all()


def test_steps_are_continuous_from_the_right() -> None:
    times, values = (0.25, 0.5, 1.0), (7.0, 5.0, 3.0, 1.0)
    got = steps(U, network(3), times=times, values=values)
    close(got, np.select([u >= 1.0, u >= 0.5, u >= 0.25], [1.0, 3.0, 5.0], 7.0)[:, None])
    at_jump = steps(torch.tensor([math.nextafter(0.5, 0), 0.5]), network(1), times=times, values=values)
    assert at_jump.flatten().tolist() == [5.0, 3.0]


@pytest.mark.parametrize("n", [3, 4, 6, 7, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_that_falls_on_a_jump_sees_the_new_value(n: int, dtype: torch.dtype) -> None:
    times, values = tuple(k / n for k in range(1, n + 1)), tuple(float(k) for k in range(n + 1))
    for per_share in (1, 2, 5, 9):
        progress = progress_of_steps(n * per_share + 1, dtype)
        got = steps(progress, network(1), times=times, values=values).flatten().tolist()
        assert got == [float(t // per_share) for t in range(n * per_share + 1)]


def test_steps_need_one_value_more_than_times() -> None:
    with pytest.raises(AssertionError):
        steps(U, network(1), times=(0.5,), values=(1.0,))


def test_constant_and_dtype() -> None:
    got = constant(U.float(), network(4), value=0.25)
    assert got.shape == (1000, 4) and got.dtype == torch.float32 and (got == 0.25).all()
    for ramp in RAMPS.values():
        assert ramp(U.float(), network(2)).dtype == torch.float32


def _half(progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    return constant(progress, layers, value=0.5)


def record(curve: Curve, interpolation: Interpolation, jumps: tuple[float, ...]) -> HandCoded:
    return HandCoded("name", "ana", "nowhere", {"a": curve, "b": _half}, interpolation, jumps)


def test_a_hand_coded_schedule_is_its_curves() -> None:
    schedule = record(RAMPS["cubic"], "linear", ())
    values = schedule(U, network(3))
    assert list(values) == ["a", "b"]
    assert torch.equal(values["a"], RAMPS["cubic"](U, network(3))) and (values["b"] == 0.5).all()
    copy = pickle.loads(pickle.dumps(schedule))
    assert torch.equal(copy(U, network(3))["a"], values["a"])
    with pytest.raises(AssertionError):
        schedule(U, [])


def test_knots_of_a_step_function_are_its_jumps() -> None:
    curve = partial(steps, times=(0.3, 0.8), values=(0.0, 0.4, 1.0))
    schedule = record(curve, "previous", (0.3, 0.8))
    assert schedule.knots(50).tolist() == [0.0, 0.3, 0.8, 1.0]
    assert schedule.knots(50).dtype == torch.float64
    with pytest.raises(AssertionError):
        schedule.knots(1)


def test_knots_of_a_curve_that_jumps_enclose_the_jump() -> None:
    schedule = record(partial(steps, times=(0.5, 1.0), values=(0.0, 0.4, 1.0)), "linear", (0.5, 1.0))
    knots = schedule.knots(3)
    assert knots.tolist() == [0.0, 0.5 - 2**-24, 0.5, 1 - 2**-24, 1.0]
    assert (knots.float().diff() > 0).all()  # they stay apart in float32
    layers = network(1)
    played = interpolate(U, knots, schedule(knots, layers)["a"], "linear")
    assert torch.equal(played, schedule(U, layers)["a"])
