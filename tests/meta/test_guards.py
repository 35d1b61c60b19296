"""Guards against hypergradients that went bad."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from metasched.core.layer import Layer
from metasched.engines.base import Diagnostics, Hypergradient
from metasched.estimators.reverse import Floored
from metasched.meta.adam import Adam
from metasched.meta.guards import clip, first_fault, keep, listed, update
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import hand_coded
from metasched.training.faults import Fault

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


def test_an_estimator_is_not_taken_at_its_word() -> None:
    good = estimate(0)
    for gradient, loss in (([torch.tensor([1.0, math.nan])], 1.0), ([torch.ones(2)], math.inf)):
        assert keep([Hypergradient(loss, gradient, good.diagnostics), good]) == [good]


@pytest.mark.parametrize("size", [1e160, 1.7e308])
def test_a_gradient_whose_norm_overflows_keeps_its_direction(size: float) -> None:
    gradient = [torch.tensor([3.0, 0.0]) / 4 * size, torch.tensor(-size)]
    assert math.isinf(float(torch.cat([g.flatten() for g in gradient]).norm()))
    clipped, was = clip(gradient, 5.0)
    assert was and [g.tolist() for g in clipped] == [[pytest.approx(3.0, rel=1e-12), 0.0], pytest.approx(-4.0)]


def moved_by(
    gradient: list[torch.Tensor], steps: int = 2
) -> tuple[list[Fault | None], ScheduleNetwork, list[dict[str, torch.Tensor]]]:
    """What each of some updates along a gradient says, the schedule, and the optimizer's state after them."""
    schedule = learner()
    optimizer = Adam(schedule.parameters(), lr=0.1)
    said = [update(schedule, optimizer, gradient, 7, LAYERS) for _ in range(steps)]
    return said, schedule, [optimizer.state.get(p, {}) for p in optimizer.parameters]


def test_an_update_is_that_of_the_optimizer() -> None:
    gradient = [torch.full_like(p, 0.5) for p in learner().parameters()]
    said, schedule, _ = moved_by(gradient)
    plain = learner()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.1)
    for _ in range(2):
        for p, g in zip(plain.parameters(), gradient, strict=True):
            p.grad = g
        optimizer.step()
    assert said == [None, None]
    assert all(torch.equal(a, b) for a, b in zip(schedule.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(
    ("size", "what"), [(math.nan, "outer gradient"), (-math.inf, "outer gradient"), (1e200, "optimizer's state")]
)
def test_an_update_that_would_overflow_is_not_made(size: float, what: str) -> None:
    """The square of 1e200 is no number: Adam's second moment would be infinite, and the parameter stay for ever."""
    gradient = [torch.zeros_like(p) for p in learner().parameters()]
    gradient[0][0, 0] = size
    said, schedule, state = moved_by(gradient)
    assert [str(fault).startswith(f"{what} of ") for fault in said] == [True, True] and "body.0.weight" in str(said[0])
    assert not any(state)
    assert all(torch.equal(a, b) for a, b in zip(schedule.parameters(), learner().parameters(), strict=True))


def test_parameters_at_which_the_schedule_has_no_values_are_not_taken() -> None:
    schedule = learner()
    with torch.no_grad():
        schedule.heads.weight.fill_(1e308)  # two hidden units add up to more than there is
        dict(schedule.named_parameters())["body.2.bias"].fill_(100.0)
    before = [p.detach().clone() for p in schedule.parameters()]
    optimizer = Adam(schedule.parameters(), lr=1e-3)
    fault = update(schedule, optimizer, [torch.ones_like(p) for p in schedule.parameters()], 7, LAYERS)
    assert fault is not None and str(fault).startswith("control of ")
    assert all(torch.equal(a, b) for a, b in zip(schedule.parameters(), before, strict=True))


def test_the_first_fault_is_named() -> None:
    good, bad = {"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.tensor(math.inf)}
    assert first_fault({"x": good, "y": good}) is None
    assert first_fault({"x": good, "y": bad, "z": bad}) == Fault("y", place="b")
    faults = [Fault("loss", step=i) for i in (0, 0, 1, 2, 3, 4)]
    assert listed(faults) == "loss at inner step 0, loss at inner step 1, loss at inner step 2 and 2 more"
    assert listed([]) == ""


def learner() -> ScheduleNetwork:
    controls = build_method(MethodConfig(name="joint")).controls
    base = hand_coded("joint")["joint_linear"]
    return ScheduleNetwork(controls, base, [c.name for c in controls], knots=5, hidden=3, seed=0)


def test_the_floor_holds_the_noise_alone() -> None:
    schedule = learner()
    floored = Floored(schedule, schedule.controls, 0.1)
    progress = progress_of_steps(21)
    values, plain = floored(progress, LAYERS), schedule(progress, LAYERS)
    for name in ("weight_noise", "activation_noise"):
        assert values[name].min().item() == 0.1 == values[name][-1, 0].item()
        above = plain[name] > 0.1
        assert torch.equal(values[name][above], plain[name][above])
    for name in ("noise_mean", "freeze_fraction"):
        assert torch.equal(values[name], plain[name])
    assert [id(p) for p in floored.parameters()] == [id(p) for p in schedule.parameters()]


def test_a_control_declares_its_own_floor() -> None:
    schedule = learner()
    own = Floored(schedule, schedule.controls, None)(progress_of_steps(21), LAYERS)
    assert own["weight_noise"].min().item() == 0.35 == own["activation_noise"].min().item()
    assert own["freeze_fraction"].min().item() == 0.0
    renamed = [replace(c, learning_floor=0.2 if c.name == "freeze_fraction" else None) for c in schedule.controls]
    other = Floored(schedule, renamed, None)(progress_of_steps(21), LAYERS)
    assert other["weight_noise"].min().item() == 0.0 and other["freeze_fraction"].min().item() == 0.2


def test_no_gradient_comes_from_below_the_floor() -> None:
    schedule = learner()
    values = Floored(schedule, schedule.controls, 0.1)(progress_of_steps(21), LAYERS)["weight_noise"]
    below = values == 0.1
    (of_above,) = torch.autograd.grad(values[~below].sum(), schedule.heads.weight, retain_graph=True)
    (of_below,) = torch.autograd.grad(values[below].sum(), schedule.heads.weight)
    assert bool(of_above.any()) and not bool(of_below.any())


def test_a_schedule_without_noise_has_nothing_to_hold() -> None:
    class Freezing(nn.Module):
        def forward(self, progress: torch.Tensor, layers: list[Layer]) -> dict[str, torch.Tensor]:
            return {"freeze_fraction": progress[:, None]}

    values = Floored(Freezing(), learner().controls, 0.1)(torch.tensor([0.0, 0.05]), LAYERS)
    assert values["freeze_fraction"].flatten().tolist() == [0.0, 0.05]
