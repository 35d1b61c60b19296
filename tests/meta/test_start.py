"""Where learning starts: no schedule at all, unless a hand-coded one is above it by its interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from metasched import build_problem, train
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.evaluation.contenders import named_schedule
from metasched.evaluation.statistics import paired_difference
from metasched.meta.config import MetaConfig
from metasched.meta.start import best_start, chosen, given_start, start_of
from metasched.methods import METHODS, build_method
from metasched.methods.config import MethodConfig
from metasched.runs.cells import played
from metasched.runs.config import RunConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import floor_of, has_floor, schedules_of
from metasched.tasks.config import TaskConfig
from metasched.tracking.tracker import Memory
from metasched.training.optimizers.config import OptimizerConfig

STEPS = 5
PLAIN = {  # method and its parameters, of which the floor has the bits of ste
    "widths": {"window": "uniform"},
    "blend": {},
    "rates": {},
    "inq": {"live": "hard"},
    "oscillation": {},
    "temperature": {},
    "admm": {"constraint": "quantize"},
    "quant_noise": {},
    "rounding": {},
    "joint": {"of": "widths+rates", "window": "uniform"},
}


class Notes(list[str]):
    """A console that keeps its lines."""

    def progress(self, *_: object) -> None: ...
    def outer(self, *_: object) -> None: ...
    def note(self, text: str) -> None:
        self.append(text)

    def table(self, *_: object) -> None: ...
    def close(self) -> None: ...


class Planned:
    """A pool whose cells have given scores, in the order of the candidates and of the seeds."""

    workers = 1

    def __init__(self, *scores: Sequence[float]) -> None:
        self.scores = [score for own in scores for score in own]
        self.asked: list[tuple[Any, ...]] = []

    def map(self, function: Callable[..., Any], arguments: Any) -> Iterator[list[float]]:
        self.asked += arguments
        assert len(self.asked) == len(self.scores)
        return ([score] for score in self.scores)


def experiment(name: str, **parameters: Any) -> Experiment:
    return Experiment(
        task=TaskConfig(model="mlp", width=4, steps=STEPS, batch=16, train=64, validation=16, test=16),
        optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.5, weight_decay=0.01),
        method=MethodConfig(name=name, **parameters),
        run=RunConfig(dtype="float64"),
    )


# --- the floor as a schedule ---


@pytest.mark.parametrize("name", PLAIN)
def test_the_floor_has_the_bits_of_ste(name: str) -> None:
    ours, ste = experiment(name, **PLAIN[name]).problem, experiment("ste").problem
    given = given_start(ours, "floor")
    assert given is not None and given[0] == "floor" == given[1].name  # type: ignore[attr-defined]
    found = train(build_problem(ours).with_seed(2), played(ours, given[1], STEPS))
    plain = train(build_problem(ste).with_seed(2), played(ste, schedules_of(ste.method)["ste"], STEPS))
    assert torch.equal(found.losses, plain.losses)
    if name != "inq":  # which freezes in the last step, so that the last update is undone
        assert all(torch.equal(found.state.params[key], plain.state.params[key]) for key in plain.state.params)


def test_the_floor_keeps_none_values_until_the_end_of_a_control() -> None:
    method = MethodConfig(name="joint", of="inq+rates")
    floor, layers = floor_of(method, "x"), build_problem(experiment("ste").problem).network.layers
    values = floor(progress_of_steps(4), layers)
    assert values["freeze_fraction"][:, 0].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert values["lr_scale"].unique().tolist() == [1.0] and values["weight_decay"].unique().tolist() == [0.0]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"name": "ana"}, "weight_noise of ana has no value that means this; name a hand-coded schedule or a file"),
        ({"name": "joint"}, "weight_noise of joint has no value"),
        ({"name": "gxnor"}, "temperature of gxnor has no value"),
        ({"name": "inq"}, "inq does not train like that as it is configured; set method.live to hard"),
    ],
)
def test_a_method_without_a_floor_is_refused(method: dict[str, Any], expected: str) -> None:
    config = experiment(**method).problem
    with pytest.raises(MetaschedError) as caught:
        named_schedule(config, "floor", "schedule.start")
    assert str(caught.value).startswith("schedule.start: floor is no schedule at all, and ")
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not has_floor(config.method)
    with pytest.raises(MetaschedError) as other:
        named_schedule(config, "flor", "schedule.start")
    assert "floor" not in other.value.fix


def test_the_floor_is_named_where_a_name_is_wrong() -> None:
    with pytest.raises(MetaschedError, match="use a file, or one of floor, blend_"):
        named_schedule(experiment("blend").problem, "flor", "schedule.start")


@pytest.mark.parametrize("method", METHODS)
def test_a_floor_that_is_said_to_be_there_is(method: str) -> None:
    config = MethodConfig(name=method)
    if has_floor(config):
        assert floor_of(config, "x").curves.keys() == {c.name for c in build_method(config).controls}
    else:
        with pytest.raises(MetaschedError):
            floor_of(config, "x")


# --- best ---


def test_another_schedule_is_chosen_only_by_its_interval() -> None:
    floor = [0.5, 0.6, 0.7, 0.6]
    noisy = [s + d for s, d in zip(floor, (0.5, -0.2, 0.4, -0.1), strict=True)]  # the best mean, and no interval
    clear = [s + d for s, d in zip(floor, (0.04, 0.06, 0.05, 0.05), strict=True)]
    better = [s + d for s, d in zip(floor, (0.07, 0.09, 0.08, 0.08), strict=True)]
    assert paired_difference(noisy, floor).mean > paired_difference(better, floor).mean > 0
    assert chosen({"floor": floor, "a": noisy}) == (
        "floor",
        "no one of 1 hand-coded schedules is above it by its interval; the best, a: +0.1500 [-0.4088, +0.7088], n = 4",
    )
    assert chosen({"floor": floor, "a": noisy, "b": clear, "c": better}) == (
        "c",
        "+0.0800 [+0.0670, +0.0930], n = 4 against the floor: best of 2 out of 3 hand-coded schedules that are above "
        "the floor by their interval",
    )
    assert chosen({"floor": floor, "a": floor})[0] == "floor"  # a tie
    assert chosen({"floor": better, "a": floor})[0] == "floor"
    assert chosen({"floor": floor}) == ("floor", "there is no hand-coded schedule")


def test_an_error_of_rounding_is_no_advantage() -> None:
    floor = [0.5, 0.6, 0.7]
    assert chosen({"floor": floor, "a": [s + 1e-9 for s in floor]})[0] == "floor"


def test_without_a_floor_the_best_mean_wins() -> None:
    assert chosen({"a": [0.1, 0.9], "b": [0.6, 0.6]}) == ("b", "best of 2 hand-coded schedules; there is no floor")
    assert chosen({"a": [0.1], "b": [0.6]})[0] == "b"


def test_best_plays_the_floor_beside_the_hand_coded_schedules() -> None:
    config = experiment("blend").problem
    names = ["floor", *schedules_of(config.method)]
    at = 3
    scores = [[0.5, 0.6, 0.7] if i != at else [0.58, 0.7, 0.79] for i in range(len(names))]
    pool, tracker, console = Planned(*scores), Memory(), Notes()
    start = best_start(config, 3, 0, pool, tracker, console)  # type: ignore[arg-type]
    assert (start.name, start.selecting) == (names[at], len(names) * 3 * STEPS)
    assert [row["select/name"] for row in tracker.rows] == names
    assert console == [
        f"start: {names[at]}, 0.6900 on meta-validation, +0.0900 [+0.0652, +0.1148], n = 3 against the floor: best of "
        f"1 out of {len(names) - 1} hand-coded schedules that are above the floor by their interval"
    ]
    seeds = [seeds for _, _, seeds, _, _ in pool.asked]
    assert seeds == seeds[:3] * len(names) and {part for *_, part in pool.asked} == {"validation"}


def test_a_run_that_diverged_counts_as_the_worst() -> None:
    config, nan = experiment("blend").problem, float("nan")
    count = len(schedules_of(config.method))
    scores = [[0.5, 0.5, 0.5], [0.9, 0.9, nan], *[[0.4, 0.4, 0.4]] * (count - 1)]
    console = Notes()
    assert best_start(config, 3, 0, Planned(*scores), Memory(), console).name == "floor"  # type: ignore[arg-type]
    scores[0] = [nan, nan, nan]  # the floor diverges: what does not is above it
    scores[1] = [0.8, 0.9, 0.85]
    best = best_start(config, 3, 0, Planned(*scores), Memory(), console)  # type: ignore[arg-type]
    assert best.name == next(iter(schedules_of(config.method)))


def test_one_run_has_no_interval_so_nothing_is_played() -> None:
    console = Notes()
    settings = MetaConfig(select_runs=1)
    pool = Planned()
    start = best_start(experiment("blend").problem, settings.select_runs, 0, pool, Memory(), console)  # type: ignore[arg-type]
    assert (start.name, start.selecting, pool.asked) == ("floor", 0, [])
    assert console == ["start: floor, because meta.select_runs is 1 and one run has no interval"]


def test_a_checkpoint_may_name_the_floor() -> None:
    method = MethodConfig(name="blend")
    checkpoint: Any = type("Checkpoint", (), {"start": "floor", "selecting": 7})
    found = start_of(checkpoint, None, method)
    assert (found.name, found.selecting) == ("floor", 7) and found.schedule.name == "floor"  # type: ignore[attr-defined]
    with pytest.raises(MetaschedError, match="floor"):
        start_of(checkpoint, None, MethodConfig(name="ana"))
