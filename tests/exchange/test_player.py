"""Playing a schedule: what the file says, on any horizon and any network, from any position."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metasched.core.errors import MetaschedError
from metasched.core.layer import Kind, Layer
from metasched.exchange.export import export
from metasched.exchange.format import Provenance, ScheduleFile
from metasched.exchange.player import PlayedSchedule, SchedulePlayer, check_method
from metasched.exchange.schedule_file import loads
from metasched.methods.base import Control
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded

HORIZONS = [1, 2, 3, 7, 100]


def layer(name: str, depth: float, kind: Kind) -> Layer:
    return Layer(name, depth, kind, "weight", 9, 72, 1.585)


OTHERS = (
    layer("stem", 0.0, "conv"),
    layer("body.0", 0.125, "conv"),
    layer("body.1", 0.4, "conv"),
    layer("body.2", 0.75, "conv"),
    layer("head.0", 0.9, "linear"),
    layer("head.1", 1.0, "linear"),
)


@pytest.fixture(params=["linear", "previous"])
def file(golden: str, request: pytest.FixtureRequest) -> ScheduleFile:
    return dataclasses.replace(loads(golden, "schedule.json"), interpolation=request.param)


def table(file: ScheduleFile, num_steps: int, layers: Sequence[Layer] | None = None) -> dict[str, torch.Tensor]:
    played = PlayedSchedule(file)
    return played(progress_of_steps(num_steps), layers or played.layers)


def in_numpy(file: ScheduleFile, progress: np.ndarray, layers: Sequence[Layer], control: str) -> np.ndarray:
    """Knots by numpy, then depth by numpy among the layers of the same kind."""
    knots = np.array(file.progress)
    if file.interpolation == "linear":
        known = np.stack([np.interp(progress, knots, curve) for curve in file.values[control]])
    else:
        index = [max(k for k in range(len(knots)) if knots[k] <= u) for u in progress]
        known = np.array(file.values[control])[:, index]
    columns = []
    for target in layers:
        same = [i for i, other in enumerate(file.layers) if other.kind == target.kind]
        depths = [file.layers[i].depth for i in same]
        columns.append([np.interp(target.depth, depths, known[same, t]) for t in range(len(progress))])
    return np.array(columns).T


@pytest.mark.parametrize("num_steps", HORIZONS)
def test_own_layers_get_their_own_curves(file: ScheduleFile, num_steps: int) -> None:
    progress = progress_of_steps(num_steps)
    for control, values in table(file, num_steps).items():
        known = PlayedSchedule(file).layers
        expected = in_numpy(file, progress.numpy(), known, control)
        np.testing.assert_allclose(values.numpy(), expected, rtol=0, atol=1e-15)


def test_knots_give_the_values_of_the_file_exactly(file: ScheduleFile) -> None:
    played = PlayedSchedule(file)
    values = played(torch.tensor(file.progress, dtype=torch.float64), played.layers)
    assert {name: tuple(map(tuple, v.T.tolist())) for name, v in values.items()} == file.values


def test_names_and_kinds_in_order_decide_whether_layers_are_the_same(golden: str) -> None:
    file = loads(golden, "schedule.json")
    played = PlayedSchedule(file)
    progress = progress_of_steps(7)
    own = played(progress, played.layers)["weight_noise"]
    moved = [dataclasses.replace(known, depth=1.0, bits=8.0) for known in played.layers]
    assert torch.equal(played(progress, moved)["weight_noise"], own)
    renamed = [dataclasses.replace(known, name=f"new.{known.name}") for known in moved]
    by_depth = played(progress, renamed)["weight_noise"]
    assert torch.equal(by_depth, own[:, [1, 1, 2]])  # at depth 1 both convolutions are nearest to the second one


@pytest.mark.parametrize("num_steps", HORIZONS)
def test_other_layers_are_matched_by_kind_and_depth(file: ScheduleFile, num_steps: int) -> None:
    progress = progress_of_steps(num_steps)
    for control, values in table(file, num_steps, OTHERS).items():
        expected = in_numpy(file, progress.numpy(), OTHERS, control)
        np.testing.assert_allclose(values.numpy(), expected, rtol=0, atol=1e-15)


def test_layers_at_the_depth_of_a_known_one_or_beyond_get_its_curve_exactly(golden: str) -> None:
    file = loads(golden, "schedule.json")
    asked = [layer("a", 0.0, "conv"), layer("b", 0.5, "conv"), layer("c", 0.8, "conv"), layer("d", 0.0, "linear")]
    own, other = table(file, 100), table(file, 100, asked)
    for control, values in other.items():
        assert torch.equal(values, own[control][:, [0, 1, 1, 2]])


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["conv", "linear"])), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_network_keeps_the_range_and_the_end(features: list[tuple[float, Kind]]) -> None:
    golden = Path(__file__).parents[1] / "formats" / "schedule_v1.json"
    file = loads(golden.read_bytes(), "schedule.json")
    layers = [layer(f"l{i}", depth, kind) for i, (depth, kind) in enumerate(features)]
    values = table(file, 33, layers)
    for control in file.controls:
        assert values[control.name].min() >= control.low and values[control.name].max() <= control.high
    assert (values["weight_noise"][-1] == 0).all() and (values["freeze_fraction"][-1] == 1).all()
    assert (values["weight_noise"][24:] == 0).all()  # it dwells there from progress 0.75 on


def test_rounding_does_not_carry_a_value_out_of_the_range(golden: str) -> None:
    """Just before the second layer the weight rounds to 1, and 0.03 + 1 * (0.29 - 0.03) to more than 0.29."""
    file = loads(golden, "schedule.json")
    depths, curves = (1.6653345369377348e-16, 1.0), ((0.03,) * 5, (0.29,) * 5)
    two = dataclasses.replace(
        file,
        controls=(dataclasses.replace(file.controls[3], high=0.29),),
        layers=tuple(dataclasses.replace(file.layers[0], name=f"l{i}", depth=d) for i, d in enumerate(depths)),
        values={"noise_mean": curves},
    )
    values = table(two, 1, [layer("a", 1 - 2**-53, "conv")])
    assert values["noise_mean"].item() == 0.29


def test_a_kind_that_the_file_does_not_have_is_played_by_depth_and_named(golden: str) -> None:
    file = loads(golden, "schedule.json")
    convolutions = dataclasses.replace(
        file,
        layers=file.layers[:2],
        values={name: curves[:2] for name, curves in file.values.items()},
    )
    said = r"layers: the schedule has layers of kind conv only: linear layers \(head\.0, .*\) follow their depth alone"
    with pytest.warns(UserWarning, match=said):
        SchedulePlayer(convolutions, 10, OTHERS)
    as_conv = [dataclasses.replace(other, kind="conv") for other in OTHERS]
    assert torch.equal(table(convolutions, 10, OTHERS)["noise_mean"], table(convolutions, 10, as_conv)["noise_mean"])


@pytest.mark.parametrize("layers", [None, OTHERS], ids=["own layers", "other layers"])
@pytest.mark.parametrize("num_steps", HORIZONS)
def test_player_gives_each_step_the_bits_of_the_whole_run(
    file: ScheduleFile, num_steps: int, layers: tuple[Layer, ...] | None
) -> None:
    whole = table(file, num_steps, layers)
    player = SchedulePlayer(file, num_steps, layers)
    for step in range(num_steps):
        assert player.at(step) == {
            known.name: {control: values[step, i].item() for control, values in whole.items()}
            for i, known in enumerate(player.layers)
        }
        assert player.state_dict() == {"step": step}
        ahead = player.at(step)
        assert all(player.value(c, name) == v for name, row in ahead.items() for c, v in row.items())
        assert player.step() == ahead


def test_resuming_in_the_middle_goes_on_as_if_uninterrupted(file: ScheduleFile) -> None:
    player = SchedulePlayer(file, 20)
    uninterrupted = [player.step() for _ in range(20)]
    first = SchedulePlayer(file, 20)
    before = [first.step() for _ in range(7)]
    second = SchedulePlayer(file, 20)
    second.load_state_dict(first.state_dict())
    assert second.value("noise_mean", "features.0") == uninterrupted[7]["features.0"]["noise_mean"]
    assert before + [second.step() for _ in range(13)] == uninterrupted
    assert len({str(values) for values in uninterrupted}) > 3


def test_beyond_the_last_step_the_last_values_stay(file: ScheduleFile) -> None:
    player = SchedulePlayer(file, 3)
    values = [player.step() for _ in range(6)]
    assert values[2] == values[3] == values[5] == player.at(1000)
    assert values[1] != values[2]
    assert player.state_dict() == {"step": 6}


def test_a_path_plays_as_the_file_in_it(tmp_path: Path, golden: str) -> None:
    (tmp_path / "schedule.json").write_text(golden)
    whole = SchedulePlayer(loads(golden, "schedule.json"), 9)
    for path in (tmp_path / "schedule.json", str(tmp_path / "schedule.json")):
        assert [SchedulePlayer(path, 9).at(t) for t in range(9)] == [whole.at(t) for t in range(9)]


def test_any_schedule_can_be_played_on_given_layers() -> None:
    linear = hand_coded("ana")["ana_linear"]
    player = SchedulePlayer(linear, 5, OTHERS)
    assert [player.step()["stem"]["weight_noise"] for _ in range(5)] == [0.5, 0.375, 0.25, 0.125, 0.0]
    with pytest.raises(MetaschedError, match=r"^layers: none given"):
        SchedulePlayer(linear, 5)


@pytest.mark.parametrize("kind", ["linear", "previous"])
def test_an_exported_schedule_plays_what_the_inner_loop_saw(kind: Literal["linear", "previous"]) -> None:
    """At the horizon whose steps are the knots: the very bits."""
    schedule = hand_coded("inq")["inq_cosine" if kind == "linear" else "inq_alexnet_5bit"]
    control = Control("freeze_fraction", 0.0, 1.0, "share", "nondecreasing", end=1.0)
    steps = progress_of_steps(101)
    file = export(
        schedule,
        method_name="inq",
        method_parameters={},
        controls=[control],
        layers=OTHERS,
        knots=steps,
        interpolation=kind,
        provenance=Provenance(kind="hand-coded", name=schedule.name),
    )
    assert torch.equal(
        PlayedSchedule(file)(steps, OTHERS)["freeze_fraction"], schedule(steps, OTHERS)["freeze_fraction"]
    )


def test_values_have_the_dtype_of_progress_and_are_computed_in_float64(file: ScheduleFile) -> None:
    played = PlayedSchedule(file)
    short = played(torch.tensor([0.2], dtype=torch.float32), played.layers)["weight_noise"]
    exact = played(torch.tensor([0.2], dtype=torch.float32).double(), played.layers)["weight_noise"]
    assert short.dtype == torch.float32 and torch.equal(short, exact.float())


def test_a_played_schedule_goes_to_another_process(file: ScheduleFile) -> None:
    played = PlayedSchedule(file)
    again = pickle.loads(pickle.dumps(played))
    progress = progress_of_steps(7)
    assert torch.equal(again(progress, OTHERS)["noise_mean"], played(progress, OTHERS)["noise_mean"])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda p: p.at(-1), "step: must be at least 0, got -1"),
        (
            lambda p: p.value("weight_nois", "features.0"),
            "control: unknown name 'weight_nois'; did you mean 'weight_noise'?",
        ),
        (lambda p: p.value("weight_noise", "feature.0"), "layer: unknown name 'feature.0'; did you mean 'features.0'?"),
        (lambda p: p.load_state_dict({}), "state_dict: must be"),
        (lambda p: p.load_state_dict({"step": -1}), "state_dict: must be"),
        (lambda p: p.load_state_dict({"step": True}), "state_dict: must be"),
        (lambda p: p.load_state_dict({"step": 1, "last_epoch": 1}), "state_dict: must be"),
        (lambda p: SchedulePlayer(PlayedSchedule(p.file), 0), "total_steps: must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(ask: Any, message: str, golden: str) -> None:
    file = loads(golden, "schedule.json")
    player = SchedulePlayer(file, 5)
    player.step()
    player.file = file  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(MetaschedError) as caught:
        ask(player)
    assert str(caught.value).startswith(message)
    assert player.state_dict() == {"step": 1}


NOISE = Control("weight_noise", 0.0, 1.0, "quantum", "nonincreasing", end=0.0)
MEAN = Control("noise_mean", -0.5, 0.5, "quantum", "free", end=None)


def test_a_file_for_the_method_passes(golden: str) -> None:
    file = loads(golden, "schedule.json")
    check_method(file, "joint", [NOISE, MEAN], "schedule.json")
    check_method(file, "joint", [dataclasses.replace(NOISE, high=2.0, direction="free", end=None)], "schedule.json")


@pytest.mark.parametrize(
    ("method", "control", "message"),
    [
        ("ana", NOISE, "schedule.json: method.name: is for method 'joint', not 'ana'"),
        ("joint", dataclasses.replace(NOISE, name="temperature"), "schedule.json: controls: lacks temperature"),
        ("joint", dataclasses.replace(NOISE, high=0.9), "schedule.json: controls[0].high: weight_noise has 1.0"),
        ("joint", dataclasses.replace(NOISE, low=0.1), "schedule.json: controls[0].low: weight_noise has 0.0"),
        ("joint", dataclasses.replace(NOISE, direction="nondecreasing"), "schedule.json: controls[0].direction: "),
        ("joint", dataclasses.replace(NOISE, end=0.5), "schedule.json: controls[0].end: weight_noise has 0.0"),
        ("joint", dataclasses.replace(NOISE, dwell=0.5), "schedule.json: controls[0].dwell: weight_noise has 0.25"),
        ("joint", dataclasses.replace(MEAN, end=0.0), "schedule.json: controls[3].end: noise_mean has None"),
        ("joint", dataclasses.replace(MEAN, direction="nonincreasing"), "schedule.json: controls[3].direction: "),
    ],
)
def test_a_file_that_promises_less_than_the_method_needs_is_refused(
    method: str, control: Control, message: str, golden: str
) -> None:
    with pytest.raises(MetaschedError) as caught:
        check_method(loads(golden, "schedule.json"), method, [control], "schedule.json")
    assert str(caught.value).startswith(message)
