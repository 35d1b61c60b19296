"""A file whose form depends on the task is played for the task that is trained, on every path that plays one."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metasched.calibration.adaround import played as played_in_calibration
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedWarning
from metasched.core.features import features_of
from metasched.core.layer import Layer
from metasched.evaluation.comparison import Arm, Comparison
from metasched.evaluation.contenders import Contender, described_arm, file_arm, named_schedule, schedule_arm
from metasched.evaluation.report import _drawn
from metasched.exchange.played import PlayedSchedule, for_task
from metasched.exchange.player import SchedulePlayer
from metasched.exchange.schedule_file import read_schedule
from metasched.families.family import features_of_problem
from metasched.methods.config import MethodConfig
from metasched.network.prepare import prepare
from metasched.network.recipe import Recipe
from metasched.runs.cells import played
from metasched.schedules.base import progress_of_steps
from metasched.study.schedules import resolved
from metasched.study.work import Work
from metasched.tasks.config import TaskConfig
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem

FORMATS = Path(__file__).parents[1] / "formats"
EXPERIMENT = Experiment(
    task=TaskConfig(model="mlp", width=3, depth=4, steps=40, batch=16, train=64, validation=16, test=32),
    method=MethodConfig(name="widths"),
    optimizer=OptimizerConfig(lr=0.05),
)
LAYERS = build_problem(EXPERIMENT.problem).network.layers


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(FORMATS / "schedule_v2_shared.json", tmp_path / "shared.json"))


@pytest.fixture
def shared(path: Path) -> PlayedSchedule:
    return PlayedSchedule(read_schedule(path))


def expected(schedule: PlayedSchedule, steps: int, layers: Any = LAYERS, **about: Any) -> dict[str, torch.Tensor]:
    """The values at the features of a task, which are counted here once more."""
    about = about or {"rate": 0.05, "batches_per_epoch": 4.0, "pretrained": False}
    return schedule.at(features_of(layers, steps, **about))(progress_of_steps(steps), layers)


def same(found: Any, schedule: PlayedSchedule, steps: int, **about: Any) -> None:
    wanted = expected(schedule, steps, **about)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(
            found[name].double(), values, rtol=0, atol=1e-6 if found[name].dtype != torch.float64 else 0
        )


def test_the_horizon_makes_a_difference_here(shared: PlayedSchedule) -> None:
    short, long = expected(shared, 40)["weight_width"], expected(shared, 400)["weight_width"]
    assert (short[0] - long[0]).abs().max() > 0.01


def test_the_features_of_a_problem() -> None:
    assert features_of_problem(EXPERIMENT.problem) == features_of(
        LAYERS, 40, rate=0.05, batches_per_epoch=4.0, pretrained=False
    )
    assert features_of_problem(EXPERIMENT.problem, 400)["horizon"] == pytest.approx(2.602, abs=1e-3)


@pytest.mark.parametrize("steps", [40, 80])
def test_cells_play_it_at_their_own_horizon(steps: int, shared: PlayedSchedule, path: Path) -> None:
    problem = EXPERIMENT.problem
    for schedule in (shared, shared.at({}), named_schedule(problem, str(path), "x")):
        same(played(problem, schedule, steps), shared, steps)


def test_cells_play_it_at_the_rate_of_their_arm(shared: PlayedSchedule) -> None:
    tuned = replace(EXPERIMENT, optimizer=OptimizerConfig(lr=0.2)).problem
    same(played(tuned, shared, 40), shared, 40, rate=0.2, batches_per_epoch=4.0, pretrained=False)


def test_named_schedules_are_for_the_task_already(shared: PlayedSchedule, path: Path) -> None:
    """As they are where learning starts at them, and where a run adapts them."""
    schedule = named_schedule(EXPERIMENT.problem, str(path), "schedule.start")
    same(schedule(progress_of_steps(40), LAYERS), shared, 40)


def test_every_arm_is_played_for_its_task(shared: PlayedSchedule, path: Path) -> None:
    problem = EXPERIMENT.problem
    arms = [file_arm(problem, path), schedule_arm(problem, shared), described_arm(EXPERIMENT, ["a", str(path)])[1]]
    for arm in arms:
        same(played(arm.problem, arm.schedule, 40), shared, 40)
    (other,) = (described_arm(EXPERIMENT, ["a", str(path), "optimizer.lr=0.3"])[1],)
    same(played(other.problem, other.schedule, 40), shared, 40, rate=0.3, batches_per_epoch=4.0, pretrained=False)


def test_the_report_draws_it_for_its_task(shared: PlayedSchedule) -> None:
    arms = {"a": Contender(EXPERIMENT.problem, shared)}
    comparison = Comparison((0, 1), (Arm("a", 40, (0.5, 0.6), 80),), ("a",))
    (drawn,) = _drawn(comparison, arms, None)
    features = features_of(LAYERS, 40, rate=0.05, batches_per_epoch=4.0, pretrained=False)
    first = shared.at(features)(torch.zeros(1).double(), LAYERS)["weight_width"][0]
    torch.testing.assert_close(drawn.values["weight_width"][0].double(), first, rtol=0, atol=1e-6)


def test_calibration_plays_it_for_its_task(shared: PlayedSchedule) -> None:
    same(played_in_calibration(build_problem(EXPERIMENT.problem), shared, "shared"), shared, 40)


def test_a_player_is_told_what_it_cannot_know(shared: PlayedSchedule, path: Path) -> None:
    about = {"rate": 0.3, "batches_per_epoch": 12.0, "pretrained": True}
    wanted = expected(shared, 50, **about)["weight_width"]
    for given in (shared, str(path), read_schedule(path)):
        player = SchedulePlayer(given, 50, LAYERS, **about)
        assert [v["weight_width"] for v in player.at(20).values()] == wanted[20].tolist()
    bound = shared.at(
        features_of(LAYERS, 7, **about)
    )  # what the caller knows stays, and the horizon is that of the run
    assert SchedulePlayer(bound, 50, LAYERS).at(20) == player.at(20)


def test_what_is_not_known_is_that_of_a_mean_task_and_is_said(shared: PlayedSchedule) -> None:
    # the row of the width is 0 in this file
    said = r"layers: the schedule depends on batches_per_epoch, rate, pretrained, not known here, which counts as that"
    with pytest.warns(MetaschedWarning, match=said) as caught:
        player = SchedulePlayer(shared, 50, LAYERS)
    assert len(caught) == 1
    known = {"horizon": features_of(LAYERS, 50)["horizon"], **features_of(LAYERS, 50)}
    wanted = shared.at(known)(progress_of_steps(50), LAYERS)["weight_width"]
    assert [v["weight_width"] for v in player.at(20).values()] == wanted[20].tolist()
    middle = {f.name: f.centre for f in shared.file.form.features if f.name not in known} if shared.file.form else {}
    with_means = shared.at({**known, **middle})(progress_of_steps(50), LAYERS)["weight_width"]
    assert torch.equal(wanted, with_means)


def test_a_form_that_reads_nothing_says_nothing() -> None:
    schedule = PlayedSchedule(read_schedule(FORMATS / "schedule_v2_family.json"))
    assert schedule.reads == () and for_task(schedule, lambda: pytest.fail("asked")) is schedule
    SchedulePlayer(schedule, 10)


@pytest.mark.parametrize(
    ("kind", "how"), [("family", "follow their depth alone"), ("network", "follow a network that has not seen them")]
)
def test_layers_of_a_kind_that_was_not_learned_are_named(kind: str, how: str) -> None:
    schedule = PlayedSchedule(read_schedule(FORMATS / f"schedule_v2_{kind}.json"))
    with pytest.warns(MetaschedWarning, match=rf"layers of kind conv, linear only: attention layers \(x\) {how}"):
        SchedulePlayer(schedule, 10, (Layer("x", 0.5, "attention", "weight", 9, 72, 2.0),))


def test_prepare_plays_it_for_its_task(shared: PlayedSchedule, path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    about = {"rate": 0.3, "batches_per_epoch": 12.0, "pretrained": True}
    method = MethodConfig(name="widths", scale="least_squares")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "model: |schedule: was learned from scratch")
        _, player = prepare(model, method, torch.zeros(2, 4), str(path), total_steps=50, **about)
    wanted = shared.at(features_of(player.layers, 50, **about))(progress_of_steps(50), player.layers)
    assert [player.value("weight_width", layer.name) for layer in player.layers] == pytest.approx(
        wanted["weight_width"][0].tolist(), abs=1e-6
    )


def test_a_recipe_that_draws_weights_anew_is_no_pretrained_start(path: Path) -> None:
    recipe = Recipe(MethodConfig(name="widths"), redraw=True)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    prepare(model, recipe, torch.zeros(2, 4), str(path), total_steps=50, rate=0.1, batches_per_epoch=9)  # no warning


def test_a_study_starts_at_it_for_its_own_task(shared: PlayedSchedule) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    recipe = Recipe(MethodConfig(name="widths", scale="least_squares"))
    work = Work(lambda model, player, seed, steps: 0.0, None, model, recipe, torch.zeros(2, 4), 30)
    start = resolved(shared, work, 9, "start")
    assert isinstance(start.schedule, PlayedSchedule)
    assert start.schedule.features == features_of(work.layers, 30)


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MetaschedWarning)
        yield
