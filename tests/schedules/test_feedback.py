"""Closed-loop schedules: the correction against the formula in numpy, and what holds for all numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.methods.base import Control
from metasched.schedules.base import progress_of_steps
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.family import ScheduleFamily
from metasched.schedules.feedback import (
    FEATURES,
    FeedbackSchedule,
    corrected,
    gain_curves,
    gains_of,
    is_closed_loop,
    open_loop,
)
from metasched.schedules.learnable import build_learnable, build_trained
from metasched.schedules.table import hand_coded

LAYERS = tuple(Layer(f"layer{i}", i / 2, "conv", "weight+activation", 9, 90, 2.0) for i in range(3))
FREE = Control("free", 0.1, 4.0, "one", "free", end=None, scale="log")
CONTROLS = {
    "log": FREE,
    "linear": replace(FREE, scale="linear"),
    "falls": Control("falls", 0.0, 2.0, "one", "nonincreasing", end=0.5),
    "rises": Control("rises", 0.0, 1.0, "one", "nondecreasing", end=1.0, dwell=0.25),
    "falls on a log scale": Control("falls", 0.01, 2.0, "one", "nonincreasing", end=0.01, scale="log"),
    "whole network": Control("network", 0.0, 1.0, "one", "free", end=None, granularity="network"),
}


def by_hand(c: Control, base: np.ndarray, gains: np.ndarray, phi: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The formula of the module, once more."""
    move = np.sum([gains[f] * phi[f] for f in range(len(FEATURES))], 0)
    if c.granularity == "network":
        move = np.full_like(move, move.mean())
    to, back = (np.log, np.exp) if c.scale == "log" else (lambda x: x, lambda x: x)
    low, high = to(c.low), to(c.high)
    if c.end is not None and c.direction == "nonincreasing":
        low = to(c.end)
    if c.end is not None and c.direction == "nondecreasing":
        high = to(c.end)
    found = []
    for b, m, before in zip(base, move, last, strict=True):
        share = (to(b) - low) / (high - low)
        if m == 0:
            v = b
        elif share <= 0:
            v = back(low + (high - low) * min(max(m, 0) / 4, 1))
        elif share >= 1:
            v = back(high - (high - low) * min(max(-m, 0) / 4, 1))
        else:
            v = back(low + (high - low) / (1 + math.exp(-(math.log(share / (1 - share)) + m))))
        found.append({"free": v, "nonincreasing": min(v, before), "nondecreasing": max(v, before)}[c.direction])
    return np.array(found)


def drawn(control: Control, draws: torch.Generator) -> tuple[torch.Tensor, ...]:
    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draws, dtype=torch.float64)

    low = control.end if control.direction == "nonincreasing" and control.end is not None else control.low
    base = low + (control.high - low) * uniform(3)
    base[0] = low if float(uniform(1)) < 0.3 else base[0]
    base[1] = control.high if float(uniform(1)) < 0.3 else base[1]
    if control.granularity == "network":
        base = base[:1].expand(3)
    last = low + (control.high - low) * uniform(3)
    gains, phi = 4 * uniform(len(FEATURES), 3) - 2, 2 * uniform(len(FEATURES), 3) - 1
    if float(uniform(1)) < 0.2:
        gains = torch.zeros_like(gains)
    return base, gains, phi, last


@pytest.mark.parametrize("name", CONTROLS)
def test_a_correction_is_the_formula(name: str) -> None:
    control, draws = CONTROLS[name], torch.Generator().manual_seed(3)
    for _ in range(50):
        given = drawn(control, draws)
        expected = by_hand(control, *(t.numpy() for t in given))
        np.testing.assert_allclose(corrected(control, *given).numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CONTROLS)
def test_without_a_correction_the_base_keeps_its_bits(name: str) -> None:
    control, draws = CONTROLS[name], torch.Generator().manual_seed(4)
    for dtype in (torch.float64, torch.float32):
        base, gains, phi, _ = (t.to(dtype) for t in drawn(control, draws))
        assert torch.equal(corrected(control, base, 0 * gains, phi, base), base)


@pytest.mark.parametrize("name", CONTROLS)
def test_range_direction_and_end_hold_for_all_numbers(name: str) -> None:
    control, draws, steps = CONTROLS[name], torch.Generator().manual_seed(5), 30
    u = progress_of_steps(steps)
    window = {"nonincreasing": 1 - u, "nondecreasing": u, "free": torch.full_like(u, 0.5)}[control.direction]
    low = control.end if control.direction == "nonincreasing" and control.end is not None else control.low
    base = (low + (control.high - low) * window)[:, None].expand(-1, 3).clone()
    if control.end is not None:
        base[u >= 1 - control.dwell] = control.end
    for size in (1.0, 30.0):
        numbers = size * torch.randn(len(FEATURES), 1 if name == "whole network" else 2, generator=draws).double()
        curves = gains_of(gain_curves(control, numbers, u, LAYERS))[control.name]
        last, played = base[0], []
        for t in range(steps):
            phi = 2 * torch.rand(len(FEATURES), 3, generator=draws).double() - 1
            last = corrected(control, base[t], curves[:, t], phi, last)
            played.append(last)
        v = torch.stack(played)
        assert bool(((v >= control.low) & (v <= control.high)).all())
        sign = {"nonincreasing": -1, "nondecreasing": 1, "free": 0}[control.direction]
        assert bool((sign * v.diff(dim=0) >= 0).all())
        if control.end is not None:
            assert bool((v[u >= 1 - control.dwell] == control.end).all())
        if control.granularity == "network":
            assert bool((v == v[:, :1]).all())


def test_gains_are_linear_in_depth_and_end_where_the_end_holds() -> None:
    numbers = torch.tensor([[1.0, 0.5], [0.0, -2.0], [0.25, 0.0]], dtype=torch.float64)
    curves = gain_curves(CONTROLS["rises"], numbers, progress_of_steps(5), LAYERS)
    assert list(curves) == [f"rises:{feature}" for feature in FEATURES]
    for i, row in enumerate([[0.5, 1.0, 1.5], [2.0, 0.0, -2.0], [0.25, 0.25, 0.25]]):
        found = curves[f"rises:{FEATURES[i]}"]
        assert found[:3].tolist() == [row] * 3 and found[3:].tolist() == [[0.0] * 3] * 2  # it dwells from 0.75 on
    free = gain_curves(FREE, numbers, progress_of_steps(5), LAYERS)
    assert bool((free["free:loss_trend"] == free["free:loss_trend"][0]).all())


def test_before_learning_it_is_its_base_with_gains_of_0() -> None:
    base = hand_coded("widths")["widths_narrowing"]
    controls = [replace(FREE, name="weight_width"), replace(FREE, name="activation_width")]
    family = ScheduleFamily(controls, base, ["weight_width"], knots=5, layers=LAYERS)
    schedule, u = FeedbackSchedule(family), progress_of_steps(7)
    values = schedule(u, LAYERS)
    assert is_closed_loop(values) and not is_closed_loop(open_loop(values))
    assert all(torch.equal(v, family(u, LAYERS)[name]) for name, v in open_loop(values).items())
    gains = gains_of(values)
    assert list(gains) == ["weight_width"] and gains["weight_width"].shape == (3, 7, 3)
    assert not bool(gains["weight_width"].any())
    own = dict(schedule.named_parameters())
    assert [name for name in own if not name.startswith("base.")] == ["gains.weight_width"]
    assert schedule.scales() == {}


@pytest.mark.parametrize("directions", [None, 8])
def test_scales_are_those_of_the_base(directions: int | None) -> None:
    base = hand_coded("widths")["widths_narrowing"]
    controls = [replace(FREE, name="weight_width"), replace(FREE, name="activation_width")]
    config = ScheduleConfig(directions=directions, knots=5, hidden=4, feedback=True)
    schedule = build_trained(config, controls, base, ["weight_width"], LAYERS, 0)
    assert isinstance(schedule, FeedbackSchedule)
    assert schedule.scales().keys() == (
        {n for n, _ in schedule.named_parameters() if "base" in n} if not directions else set()
    )
    assert sum(p.numel() for p in schedule.gains.values()) == 6


def test_feedback_of_nothing_or_elsewhere_is_refused() -> None:
    base, controls = hand_coded("widths")["widths_narrowing"], [replace(FREE, name="weight_width")]
    config = ScheduleConfig(kind="family", knots=5, feedback=True)
    with pytest.raises(MetaschedError, match=r"schedule\.feedback: is on, and no control is learned"):
        build_trained(config, controls, base, [], LAYERS, 0)
    with pytest.raises(MetaschedError, match="is learned by `metasched train` alone"):
        build_learnable(config, controls, base, ["weight_width"], LAYERS, 0)
