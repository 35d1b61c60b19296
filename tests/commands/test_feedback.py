"""Closed-loop schedules, from the command line: learned, stopped and resumed, shown, compared, deployed, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from torch import nn

from metasched import MetaschedError, Recipe, prepare, quantize
from metasched.calibration.adaround import played as calibrated
from metasched.cli import main
from metasched.config.load import load_experiment
from metasched.evaluation.contenders import read_playable
from metasched.exchange.format import MethodEntry
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.quantlab.exporting import export_quantlab
from metasched.exchange.schedule_file import dumps, loads, read_schedule
from metasched.io.json_lines import read_json_lines
from metasched.runs.cells import played
from metasched.runs.store import Store
from metasched.schedules.feedback import open_loop
from metasched.study.schedules import resolved
from metasched.study.work import Work

pytestmark = pytest.mark.usefixtures("blank_plots")
GOLDEN = Path(__file__).parents[1] / "formats" / "schedule_v3_feedback.json"
TINY: dict[str, Any] = {
    "name": "tiny",
    "task": {"model": "mlp", "width": 3, "steps": 6, "batch": 16, "train": 64, "validation": 32, "test": 32},
    "optimizer": {"lr": 0.05},
    "method": {"name": "joint", "of": "widths+inq", "scale": "least_squares"},
    "schedule": {"kind": "family", "start": "floor", "knots": 4, "feedback": True},
    "meta": {"estimator": "es", "steps": 3, "runs": 2, "lr": 1.0, "confirm_runs": 0},
    "compare": {"seeds": 2, "baselines": []},
    "run": {"workers": 1},
    "tracking": {"wandb": "disabled"},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("closed") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="module")
def trained(config: Path) -> Path:
    folder = config.parent / "run"
    assert main(["train", str(config), "--folder", str(folder)]) == 0
    return folder


def test_what_is_learned_is_in_the_file(trained: Path) -> None:
    file = read_schedule(trained / "schedule.json")
    assert file.version == 3 and file.form is not None and file.form.base == "floor"
    named = {(gain.control, gain.feature) for gain in file.feedback}
    assert named == {
        (control, feature)
        for control in ("weight_width", "activation_width", "freeze_fraction")
        for feature in ("loss_trend", "distance", "flips")
    }
    assert any(any(gain.numbers) for gain in file.feedback)
    assert loads(dumps(file), "x") == file


def test_its_arm_is_played_from_the_file(trained: Path, config: Path, tmp_path: Path) -> None:
    again = tmp_path / "compare"
    given = [str(config), "--schedule", str(trained / "schedule.json"), "--folder", str(again)]
    assert main(["compare", *given]) == 0
    read = [json.loads((f / "comparison.json").read_text()) for f in (trained, again)]
    arms = [{arm["name"]: arm["scores"] for arm in one["arms"]} for one in read]
    assert arms[1]["run"] == arms[0]["learned"]


def test_a_run_that_is_stopped_leaves_the_same_bytes(trained: Path, config: Path, tmp_path: Path) -> None:
    from metasched.commands import train as command

    calls, plain, folder = [], command.write_checkpoint, tmp_path / "run"

    def interrupted(*arguments: Any) -> None:
        plain(*arguments)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with mock.patch.object(command, "write_checkpoint", interrupted):
        assert main(["train", str(config), "--folder", str(folder)]) == 130
    assert main(["train", "--resume", str(folder)]) == 0
    for name in ("schedule.json", "comparison.json", "cells.jsonl"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes(), name


def test_without_learning_it_is_its_open_loop_twin(config: Path, tmp_path: Path) -> None:
    scores = []
    for name, feedback in (("on", "true"), ("off", "false")):
        folder = tmp_path / name
        given = [str(config), "--folder", str(folder), "--meta.steps", "0", "--schedule.feedback", feedback]
        assert main(["train", *given]) == 0
        arms = json.loads((folder / "comparison.json").read_text())["arms"]
        scores.append({arm["name"]: arm["scores"] for arm in arms})
    assert scores[0] == scores[1]
    on, off = (read_schedule(tmp_path / name / "schedule.json") for name in ("on", "off"))
    assert on.values == off.values and off.version == 2 and not any(any(gain.numbers) for gain in on.feedback)


def test_show(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(trained / "schedule.json")
    assert main(["show", path]) == 0
    said = capsys.readouterr().out
    assert "feedback: how far a control follows a feature of the run" in said and "the curves are open loop" in said
    assert main(["show", path, str(GOLDEN)]) == 0
    said = capsys.readouterr().out
    assert "both are corrected by what a run measures of itself" in said and "only in" not in said
    assert main(["show", path, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["feedback"]) == 9
    assert main(["show", path, "--figure", str(tmp_path / "a.svg")]) == 0
    assert "loss_trend" not in (tmp_path / "a.svg").read_text()


def test_play_and_deploy_take_it(trained: Path, config: Path, tmp_path: Path) -> None:
    path = str(trained / "schedule.json")
    assert main(["play", str(config), "--schedule", path, "--folder", str(tmp_path / "play")]) == 0
    rows = read_json_lines(tmp_path / "play" / "cells.jsonl")
    assert rows
    given = ["--task.model", "convnet", "--schedule", str(GOLDEN), "-o", str(tmp_path / "deployed")]
    assert main(["deploy", str(config), *given]) == 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "{}", "--meta.estimator", "guided"], "meta.estimator: guided cannot learn a closed-loop schedule"),
        (["train", "{}", "--meta.estimator", "pes"], "set it to es, or schedule.feedback to false"),
        (["train", "{}", "--schedule.start", str(GOLDEN)], "schedule.start: is the file of a closed-loop schedule"),
        (["tune", "{}"], "schedule.feedback: is learned by `metasched train` alone"),
        (["online", "{}"], "schedule.feedback: is learned by `metasched train` alone"),
        (["sensitivity", "{}"], "schedule.feedback: is learned by `metasched train` alone"),
        (
            ["sensitivity", "{}", "--schedule.feedback", "false", "--schedule", str(GOLDEN)],
            "--schedule: is the file of a closed-loop schedule",
        ),
    ],
)
def test_what_cannot_take_it_says_so_in_one_line(
    command: list[str], said: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(config) for word in command]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert said in line


def test_so_do_functions() -> None:
    schedule = PlayedSchedule(read_schedule(GOLDEN))
    with pytest.raises(MetaschedError, match="calibrate: schedule: is the file of a closed-loop"):
        calibrated(mock.Mock(), schedule, "golden")
    inq = replace(schedule.file, method=MethodEntry(name="inq", parameters={}), form=None)
    with pytest.raises(MetaschedError, match="feedback: is the file of a closed-loop"):
        export_quantlab(inq, 3)
    work = mock.Mock(spec=Work, method=schedule.method, controls=())
    with pytest.raises(MetaschedError, match="start: is the file of a closed-loop"):
        resolved(schedule, work, 5, "start")


def test_nothing_is_stored_of_its_runs(config: Path, tmp_path: Path) -> None:
    problem, path = load_experiment(config).problem, tmp_path / "store.jsonl"
    values = played(problem, read_playable(GOLDEN, problem), 6)
    Store(path).add(problem, values, [1], 6, "validation", [0.5])
    assert path.read_bytes() == b""
    Store(path).add(problem, open_loop(values), [1], 6, "validation", [0.5])
    assert path.read_bytes() != b""


def test_a_file_is_played_on_another_network_and_horizon(config: Path) -> None:
    problem = load_experiment(config).problem
    values = played(problem, read_playable(GOLDEN, problem), 11)
    assert values["weight_width:flips"].shape == values["weight_width"].shape == (11, 3)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    recipe = Recipe(PlayedSchedule(read_schedule(GOLDEN)).method, first=True, redraw=True)
    assert quantize(model, recipe, torch.zeros(1, 4)).layers
    module, player = prepare(model, recipe, torch.zeros(1, 4), str(GOLDEN), total_steps=5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(5):
        loss = module(torch.ones(3, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        player.step(loss)
    assert player.value("freeze_fraction", player.layers[0].name) == 1
