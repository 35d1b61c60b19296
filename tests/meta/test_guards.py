"""Guards against hypergradients that went bad."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from metasched.config import MethodConfig
from metasched.hypergradients.base import Diagnostics, Hypergradient
from metasched.hypergradients.reverse import Floored
from metasched.layers import Layer
from metasched.meta.guards import clip, keep
from metasched.methods import build_method
from metasched.schedules.base import progress_of_steps
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import hand_coded

LAYERS = [Layer(f"layer{i}", float(i), "conv", "weight+activation", 9, 81, 1.585) for i in range(2)]


def estimate(nonfinite: int) -> Hypergradient:
    return Hypergradient(1.0, [torch.ones(2)], Diagnostics(1.0, nonfinite, 0.0, 0.0, 0, 0.5))


def test_estimates_with_anything_that_is_not_finite_are_left_out() -> None:
    good, bad, other = estimate(0), estimate(1), estimate(0)
    assert keep([good, bad, other]) == [good, other]
    assert keep([bad]) == [] and keep([]) == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6), st.floats(1e-3, 1e3))
def test_clipping_keeps_the_direction_and_bounds_the_norm(values: list[float], largest: float) -> None:
    gradient = [torch.tensor([v]) for v in values]
    norm = math.hypot(*values)
    clipped, was = clip(gradient, largest)
    assert was == (float(torch.tensor(values).norm()) > largest)
    if not was:
        assert clipped is gradient
        return
    assert math.hypot(*(float(g) for g in clipped)) == pytest.approx(largest, rel=1e-12)
    for g, v in zip(clipped, values, strict=True):
        assert g.item() == pytest.approx(v * largest / norm, rel=1e-12)


def test_clipping_is_over_all_parameters_together_and_changes_none_of_them() -> None:
    gradient = [torch.tensor([[3.0, 0.0]]), torch.tensor(4.0)]
    clipped, was = clip(gradient, 1.0)
    assert was and [g.tolist() for g in clipped] == [[[pytest.approx(0.6), 0.0]], pytest.approx(0.8)]
    assert [g.tolist() for g in gradient] == [[[3.0, 0.0]], 4.0]
    assert clip(gradient, 5.0) == (gradient, False)


def learner() -> ScheduleNetwork:
    controls = build_method(MethodConfig(name="joint")).controls
    base = hand_coded("joint")["joint_linear"]
    return ScheduleNetwork(controls, base, [c.name for c in controls], knots=5, hidden=3, seed=0)


def test_the_floor_holds_the_noise_alone() -> None:
    schedule = learner()
    floored = Floored(schedule, 0.1)
    progress = progress_of_steps(21)
    values, plain = floored(progress, LAYERS), schedule(progress, LAYERS)
    assert values["noise_scale"].min().item() == 0.1 == values["noise_scale"][-1, 0].item()
    above = plain["noise_scale"] > 0.1
    assert torch.equal(values["noise_scale"][above], plain["noise_scale"][above])
    for name in ("noise_mean", "freeze_fraction"):
        assert torch.equal(values[name], plain[name])
    assert [id(p) for p in floored.parameters()] == [id(p) for p in schedule.parameters()]


def test_no_gradient_comes_from_below_the_floor() -> None:
    schedule = learner()
    values = Floored(schedule, 0.1)(progress_of_steps(21), LAYERS)["noise_scale"]
    below = values == 0.1
    (of_above,) = torch.autograd.grad(values[~below].sum(), schedule.heads.weight, retain_graph=True)
    (of_below,) = torch.autograd.grad(values[below].sum(), schedule.heads.weight)
    assert bool(of_above.any()) and not bool(of_below.any())


def test_a_schedule_without_noise_has_nothing_to_hold() -> None:
    class Freezing(nn.Module):
        def forward(self, progress: torch.Tensor, layers: list[Layer]) -> dict[str, torch.Tensor]:
            return {"freeze_fraction": progress[:, None]}

    values = Floored(Freezing(), 0.1)(torch.tensor([0.0, 0.05]), LAYERS)
    assert values["freeze_fraction"].flatten().tolist() == [0.0, 0.05]
