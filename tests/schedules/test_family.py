"""The learnable family: what holds for any parameters, how near it starts, and that its export is itself."""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metasched.core.layer import Layer
from metasched.exchange.export import export
from metasched.exchange.format import Provenance
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import read_schedule, write_schedule
from metasched.methods import METHODS, build_method
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.family import ScheduleFamily
from metasched.schedules.learnable import build_learnable
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.space import straight
from metasched.schedules.table import HandCoded, hand_coded

CONTROLS = {name: build_method(MethodConfig(name=name)).controls for name in METHODS}  # pyright: ignore
BASES = [s for name in ("ana", "blend", "inq") for s in hand_coded(name).values()]  # those of joint are pairs
DECLARED = [
    Control("c", 0.0, 1.0, "one", "nonincreasing", end=0.0),
    Control("c", 0.0, 1.0, "one", "nondecreasing", end=1.0),
    Control("c", -2.0, 2.0, "one", "free", end=0.5),
    Control("c", 0.0, 4.0, "one", "free", end=None),
    Control("c", 0.0, 1.0, "one", "nonincreasing", end=None),
    Control("c", 0.0, 4.0, "one", "nondecreasing", end=None),
    Control("c", 1e-3, 10.0, "one", "nonincreasing", end=None, scale="log"),
    Control("c", 1e-3, 10.0, "one", "nondecreasing", end=7.0, scale="log"),
    Control("c", 1e-3, 10.0, "one", "free", end=3.0, scale="log", granularity="network"),
    Control("c", 0.0, 1.0, "one", "nondecreasing", end=1.0, granularity="network"),
]


def layers(num: int) -> list[Layer]:
    return [Layer(f"layer{i}", i / max(num - 1, 1), "conv", "weight+activation", 9, 81, 2) for i in range(num)]


def family(base: HandCoded, knots: int = 13, num_layers: int = 3) -> ScheduleFamily:
    controls = CONTROLS[base.family]
    return ScheduleFamily(controls, base, [c.name for c in controls], knots=knots, layers=layers(num_layers))


def line(first: float, last: float) -> Schedule:
    def schedule(progress: torch.Tensor, layers: object) -> dict[str, torch.Tensor]:
        return {"c": (first + progress * (last - first))[:, None].repeat(1, len(layers))}  # type: ignore[arg-type]

    return schedule


def randomize(schedule: nn.Module, seed: int, spread: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in schedule.parameters():
            p.copy_(spread * torch.randn(p.shape, generator=draws, dtype=p.dtype))


@given(
    st.sampled_from(DECLARED),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.99, 1.0]),
    st.floats(0, 1),
    st.integers(2, 20),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0, 1e3]),
)
@settings(max_examples=50)
def test_range_direction_end_and_dwell_hold_for_any_parameters(
    control: Control, dwell: float, first: float, knots: int, seed: int, spread: float
) -> None:
    control = replace(control, dwell=dwell)
    last = 1.0 if control.end is None else control.end
    schedule = ScheduleFamily([control], line(first, last), ["c"], knots=knots, layers=layers(2))
    randomize(schedule, seed, spread)
    progress = torch.cat([torch.linspace(0, 1, 101), schedule.knots]).sort().values
    values = schedule(progress, layers(4))["c"]
    slopes = torch.autograd.grad(values.sum(), list(schedule.parameters()), allow_unused=True)
    assert all(bool(slope.isfinite().all()) for slope in slopes if slope is not None)
    assert values.shape == (len(progress), 4) and bool(values.isfinite().all())
    assert bool((values >= control.low).all()) and bool((values <= control.high).all())
    if control.direction == "nonincreasing":
        assert bool((values.diff(dim=0) <= 0).all())
    if control.direction == "nondecreasing":
        assert bool((values.diff(dim=0) >= 0).all())
    if control.end is not None:
        # the first interval moves in any case: no control can be at its end before it has started
        reached = max(1 - dwell, schedule.knots[1].item())
        assert bool((values[progress >= reached + 1e-12] == control.end).all())
        assert bool((values[-1] == control.end).all())


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_it_starts_near_the_hand_coded_schedule(base: HandCoded) -> None:
    """A tenth of the range is the error of a smooth window on INQ's coarsest steps; ramps are within 0.035."""
    schedule = family(base, knots=25, num_layers=4)
    with torch.no_grad():
        found = schedule.at_knots(layers(4))
    expected = base(schedule.knots, layers(4))
    ramp = base.name.partition("_")[2] in ("linear", "cosine", "cubic", "input_first", "output_first")
    for control in CONTROLS[base.family]:
        error = (found[control.name] - expected[control.name]).square().mean().sqrt() / (control.high - control.low)
        assert float(error) < (0.035 if ramp else 0.1), control.name
    assert all(float(p.detach().abs()) < 8 for p in schedule.parameters())  # where all still have a slope


def test_parameters_are_few_and_edges_of_the_range_have_none() -> None:
    assert {name: len(list(family(hand_coded(name)[f"{name}_linear"]).parameters())) for name in ("ana", "inq")} == {
        "ana": 18,  # weight_noise, activation_noise and noise_mean
        "inq": 5,  # freeze_fraction starts at 0
    }
    free = ScheduleFamily([DECLARED[3]], line(1.0, 2.0), ["c"], knots=5, layers=layers(2))
    assert len(list(free.parameters())) == 7
    values = free.at_knots(layers(2))["c"]
    torch.testing.assert_close(values[:, 0], torch.linspace(1, 2, 5), rtol=0, atol=0.1)


NOT_MOVING = {  # method -> its schedule that is no schedule, and the sign that leads its controls away from a bound
    "blend": ("blend_constant", {"weight_blend": -1.0, "activation_blend": -1.0}),
    "temperature": (
        "temperature_none",
        {"weight_temperature": 1.0, "activation_temperature": 1.0, "weight_blend": -1.0},
    ),
    "parq": ("parq_none", {"inverse_slope": 1.0}),
}


@pytest.mark.parametrize("name", NOT_MOVING)
def test_a_control_that_is_at_a_bound_throughout_starts_there_and_can_leave(name: str) -> None:
    base, inwards = NOT_MOVING[name]
    schedule = family(hand_coded(name)[base], knots=9)
    values, floor = schedule.at_knots(layers(3)), hand_coded(name)[base](schedule.knots, layers(3))
    windows: dict[str, Any] = {c.name: w for c, w in zip(schedule.learned, schedule.windows, strict=True)}
    assert windows.keys() == inwards.keys()
    for control in schedule.learned:
        assert torch.equal(values[control.name], floor[control.name])
        (slope,) = torch.autograd.grad(values[control.name][0].sum(), windows[control.name].first, retain_graph=True)
        assert float(slope) == pytest.approx(3 * (control.high - control.low) / 4)  # 3 layers
    with torch.no_grad():
        for control, window in windows.items():
            window.first.copy_(torch.tensor(inwards[control] * 2))
    moved = schedule.at_knots(layers(3))
    for control in schedule.learned:
        first, away = moved[control.name][0], (control.low + control.high) / 2  # two quarters of the range
        assert torch.allclose(first, torch.full_like(first, away)) and control.end is not None
        assert bool((moved[control.name][-1] == control.end).all())
    with torch.no_grad():
        for control, window in windows.items():
            window.first.copy_(torch.tensor(-inwards[control]))
    assert all(torch.equal(v, floor[n]) for n, v in schedule.at_knots(layers(3)).items())


def test_a_free_control_without_an_end_can_leave_the_bound_that_it_starts_at() -> None:
    decay = Control("c", 0.0, 0.1, "share", "free", end=None, none_value=0.0)
    schedule = ScheduleFamily([decay], line(0.0, 0.0), ["c"], knots=9, layers=layers(2))
    window: Any = schedule.windows[0]
    assert float(schedule.at_knots(layers(2))["c"][0].detach().max()) == 0
    with torch.no_grad():
        window.first.fill_(1.0)
    assert schedule.at_knots(layers(2))["c"][0].tolist() == pytest.approx([0.025, 0.025])


def test_the_documented_formula() -> None:
    """The whole family once more, in numpy."""
    schedule = family(hand_coded("ana")["ana_cubic"], knots=9)
    z = {"first": 0.7, "start": -1, "start_over_depth": 0.6, "length": 1.2, "length_over_depth": -0.4, "power": 0.2}
    schedule.windows[0].load_state_dict({name: torch.tensor(value) for name, value in z.items()})
    u = np.linspace(0, 1, 9)[:, None]
    m = 2 * np.array([0.0, 0.5, 1.0]) - 1

    def logistic(x: np.ndarray | float) -> np.ndarray | float:
        return 1 / (1 + np.exp(-x))

    s = 0.01 + 0.98 * logistic(z["start"] + z["start_over_depth"] * m)
    e = s + (1 - s) * (0.01 + 0.99 * logistic(z["length"] + z["length_over_depth"] * m))
    left = ((e - np.clip(u, s, e)) / (e - s)) ** (16 ** np.tanh(z["power"]))
    expected = logistic(z["first"]) * left
    found = schedule.at_knots(layers(3))["weight_noise"].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert len(np.unique(found)) > 10  # not only the two ends


def test_every_parameter_moves_something() -> None:
    for name in ("ana", "inq", "joint"):
        schedule = family(hand_coded(name)[f"{name}_cosine"])
        randomize(schedule, 0, 0.5)
        values = torch.stack(list(schedule(progress_of_steps(30), layers(3)).values()))
        total = (values**2 * torch.arange(1.0, 4.0)).sum()
        slopes = torch.autograd.grad(total, list(schedule.parameters()))
        assert all(float(slope.abs()) > 1e-6 for slope in slopes)


def test_other_horizons_and_networks() -> None:
    schedule = family(hand_coded("joint")["joint_input_first"])
    many, few = schedule(progress_of_steps(101), layers(6)), schedule(progress_of_steps(11), layers(6))
    alone = schedule(progress_of_steps(11), layers(6)[2:3])
    for name in many:
        assert torch.equal(many[name][::10], few[name])
        assert torch.allclose(alone[name][:, 0], few[name][:, 2], rtol=0, atol=1e-14)
    assert not torch.allclose(few["weight_noise"][:, 2], few["weight_noise"][:, 3])


def test_what_is_not_learned_keeps_the_values_of_the_base() -> None:
    base = hand_coded("joint")["joint_inq_alexnet_5bit"]
    schedule = ScheduleFamily(CONTROLS["joint"], base, ["weight_noise"], knots=9, layers=layers(3))
    values, expected = schedule.at_knots(layers(3)), base(schedule.knots, layers(3))
    assert torch.equal(values["freeze_fraction"], expected["freeze_fraction"])
    assert torch.equal(values["noise_mean"], expected["noise_mean"])
    assert values["weight_noise"].requires_grad and not values["noise_mean"].requires_grad


def test_it_is_a_function_of_its_arguments_and_can_be_saved() -> None:
    base = hand_coded("ana")["ana_2019"]
    first, again = family(base), family(base)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert all(p.grad is None for p in first.parameters())
    randomize(first, 1, 1.0)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    copy = pickle.loads(pickle.dumps(first))
    for other in (again, copy):
        values, expected = other.at_knots(layers(2)), first.at_knots(layers(2))
        assert all(torch.equal(values[name], expected[name]) for name in expected)


def test_its_export_is_itself(tmp_path: Path) -> None:
    schedule = family(hand_coded("joint")["joint_cosine"], knots=25)
    randomize(schedule, 2, 0.7)
    file = export(
        schedule,
        method_name="joint",
        method_parameters={},
        controls=CONTROLS["joint"],
        layers=layers(3),
        knots=schedule.knots,
        interpolation="linear",
        provenance=Provenance(kind="learned", name="family", citation="test"),
    )
    write_schedule(tmp_path / "schedule.json", file)
    played = PlayedSchedule(read_schedule(tmp_path / "schedule.json"))
    progress = progress_of_steps(73)
    with torch.no_grad():
        expected = schedule(progress, layers(3))
    found = played(progress, layers(3))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_configuration_chooses_between_network_and_family() -> None:
    base = hand_coded("inq")["inq_linear"]
    for kind, expected in (("network", ScheduleNetwork), ("family", ScheduleFamily)):
        config = ScheduleConfig(kind=kind, knots=7, hidden=5)  # type: ignore[arg-type]
        schedule = build_learnable(config, CONTROLS["inq"], base, ["freeze_fraction"], layers(3), seed=0)
        assert type(schedule) is expected and len(schedule.knots) == 7
        torch.testing.assert_close(
            schedule.at_knots(layers(3))["freeze_fraction"].detach(),
            base(schedule.knots, layers(3))["freeze_fraction"],
            rtol=0,
            atol=0.05,
        )


def test_a_log_scale_is_a_window_of_the_logarithm() -> None:
    control = Control("c", 0.01, 100.0, "one", "nonincreasing", end=0.01, scale="log")

    def base(progress: torch.Tensor, layers: object) -> dict[str, torch.Tensor]:
        return {"c": (10 * 1e-3**progress)[:, None].repeat(1, len(layers))}  # type: ignore[arg-type]

    found = ScheduleFamily([control], base, ["c"], knots=9, layers=layers(2)).at_knots(layers(2))["c"].detach()
    error = (found.log() - base(progress_of_steps(9), layers(2))["c"].log()).abs().max() / math.log(1e4)
    assert float(error) < 0.035 and bool((found[-1] == 0.01).all())


def test_a_network_wide_control_does_not_depend_on_depth() -> None:
    control = Control("c", 0.0, 1.0, "one", "nonincreasing", end=None, granularity="network")
    schedule = ScheduleFamily([control], line(0.9, 0.2), ["c"], knots=9, layers=layers(3))
    names = [name.rpartition(".")[2] for name, _ in schedule.named_parameters()]
    assert sorted(names) == ["first", "last", "length", "power", "start"]
    randomize(schedule, 2, 1.0)
    values = schedule.at_knots(layers(4))["c"]
    assert values.shape == (9, 4) and torch.equal(values, values[:, :1].expand(-1, 4))
    assert values[-1, 0] > 0


def test_all_values_of_a_control_on_a_log_scale_are_logarithms_where_it_is_learned() -> None:
    control = Control("c", 1e-3, 10.0, "one", "free", end=None, scale="log", none_value=10.0, learning_floor=0.1)
    learned = straight(control)
    found = [learned.low, learned.high, learned.none_value, learned.learning_floor]
    assert found == pytest.approx([math.log(v) for v in (1e-3, 10.0, 10.0, 0.1)]) and learned.end is None
    assert straight(replace(control, end=0.5)).end == pytest.approx(math.log(0.5))
