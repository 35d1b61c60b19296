"""``metasched train`` from the configuration to the files, and what the exported schedule plays."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import metasched.commands.train
from metasched import PlayedSchedule, SchedulePlayer, load_experiment, progress_of_steps, read_schedule
from metasched.config.writing import config_hash
from metasched.exchange.format import Spent
from metasched.io.environment import version
from metasched.io.json_lines import read_json_lines
from metasched.meta.outer import meta_train
from metasched.schedules.table import hand_coded
from metasched.tracking import opening
from metasched.tracking.metrics import unknown_metrics
from metasched.tracking.tracker import Memory

pytestmark = pytest.mark.usefixtures("blank_plots")

Cli = Callable[..., int]


def files(folder: Path) -> tuple[bytes, Any]:
    return (folder / "schedule.json").read_bytes(), json.loads((folder / "comparison.json").read_text())


def test_what_a_run_leaves(trained: Path) -> None:
    left = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file()}
    assert left == {
        "DONE",
        "PID",
        "cells.jsonl",
        "checkpoint.pt",
        "comparison.json",
        "config.resolved.yaml",
        "environment.json",
        "metrics.jsonl",
        "plots/comparison.png",
        "plots/schedule.png",
        "report.html",
        "schedule.json",
        "task.json",
    }
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (trained / "plots").iterdir())
    assert json.loads((trained / "environment.json").read_text())["torch"] == version("torch")


def test_what_is_logged(trained: Path) -> None:
    lines = read_json_lines(trained / "metrics.jsonl")
    rows = [line for line in lines if not {"table", "artifact", "picture"} & set(line)]
    assert unknown_metrics(name for row in rows for name in row) == []
    outer = [row for row in rows if "outer/step" in row]
    assert [(row["outer/step"], row["outer/inner_steps"]) for row in outer] == [(1, 12), (2, 24)]
    curve = [row["schedule/freeze_fraction/linear1"] for row in rows if "schedule/progress" in row]
    assert len(curve) == 101 and curve[-1] == 1
    cells = [row for row in rows if "compare/score" in row]
    comparison = json.loads((trained / "comparison.json").read_text())
    assert len(cells) == sum(len(arm["scores"]) for arm in comparison["arms"]) == 6 * 2 * 2  # arms, seeds, horizons
    for arm in comparison["arms"]:
        own = [c for c in cells if (c["compare/arm"], c["compare/horizon"]) == (arm["name"], arm["horizon"])]
        assert [c["compare/score"] for c in own] == arm["scores"]
        assert [c["compare/seed"] for c in own] == comparison["seeds"]
    assert [line["table"] for line in lines if "table" in line] == ["comparison_6", "comparison_12"]
    assert [line["file"] for line in lines if line.get("picture") == "scores_by_arm"] == ["comparison.png"]
    (artifact,) = (line for line in lines if "artifact" in line)
    assert (artifact["artifact"], artifact["kind"], artifact["file"]) == ("tiny", "schedule", "schedule.json")


def test_where_the_schedule_says_it_comes_from(trained: Path) -> None:
    experiment = load_experiment(trained / "config.resolved.yaml")
    file = read_schedule(trained / "schedule.json")
    source = file.provenance
    assert (source.kind, source.name, source.outer_steps) == ("learned", "tiny", 2)
    assert (source.config_hash, source.seeds, source.tasks) == (config_hash(experiment), (0,), ("digits",))
    assert source.citation is not None and "inq_linear" in source.citation
    arms = {(arm["name"], arm["horizon"]): arm for arm in json.loads((trained / "comparison.json").read_text())["arms"]}
    assert source.metric is not None and source.metric.name == "hardened test score after 6 steps"
    assert (source.metric.value, source.metric.n) == (pytest.approx(sum(arms["learned", 6]["scores"]) / 2), 2)
    assert file.reference is not None and file.reference.floor is not None and file.reference.ceiling is not None
    for measured in (file.reference.floor, file.reference.ceiling):
        assert measured.score == pytest.approx(sum(arms[measured.name, 6]["scores"]) / 2) and measured.n == 2
    assert source.spent == (Spent(by="sweep", inner_steps=24),)


def test_the_same_seed_gives_the_same_bytes_on_one_process_and_on_two(
    cli: Cli, config: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two, other = tmp_path / "two", tmp_path / "other"
    capsys.readouterr()
    assert cli("train", config, "--folder", two, "--run.workers", "2", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["inner_steps"] == {"selecting": 0, "learning": 24, "confirming": 0}
    schedules = [json.loads(files(f)[0]) for f in (two, trained)]
    for schedule in schedules:
        del schedule["provenance"]["config_hash"]  # of run.workers too
    assert schedules[0] == schedules[1] and files(two)[1] == files(trained)[1]
    few = ["--compare.baselines=[]", "--compare.horizons=[1]"]
    assert cli("train", config, "--folder", other, "--seed", "1", *few) == 0
    assert json.loads(files(other)[0])["values"] != schedules[0]["values"]
    assert not set(files(other)[1]["seeds"]) & set(files(trained)[1]["seeds"])


def test_what_is_exported_is_what_was_learned(
    cli: Cli, config: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    monkeypatch.setattr(
        metasched.commands.train, "meta_train", lambda *a: outcomes.append(meta_train(*a)) or outcomes[0]
    )
    assert cli("train", config, "--folder", tmp_path / "run") == 0
    network = outcomes[0].schedule
    file = read_schedule(tmp_path / "run" / "schedule.json")
    played = PlayedSchedule(file)
    with torch.no_grad():
        for steps in (6, 17, 1):
            progress = progress_of_steps(steps)
            expected = network(progress, played.layers)["freeze_fraction"]
            assert expected.dtype == torch.float64
            assert torch.equal(played(progress, played.layers)["freeze_fraction"], expected)
            player = SchedulePlayer(file, total_steps=steps)
            for row in expected:
                values = player.step()
                assert [values[layer.name]["freeze_fraction"] for layer in played.layers] == row.tolist()
        base = hand_coded("inq")["inq_linear"](progress_of_steps(6), played.layers)["freeze_fraction"]
        assert not torch.allclose(network(progress_of_steps(6), played.layers)["freeze_fraction"], base, atol=1e-4)


def test_controls_that_are_not_learned_stay_as_they_start(cli: Cli, config: Path, tmp_path: Path) -> None:
    joint = ["--method.name=joint", "--schedule.start=joint_linear", "--compare.baselines=[]", "--meta.lr=0.5"]
    assert cli("train", config, "--folder", tmp_path / "run", *joint, "--schedule.learn=[freeze_fraction]") == 0
    played = PlayedSchedule(read_schedule(tmp_path / "run" / "schedule.json"))
    progress = progress_of_steps(4)  # the knots
    now = played(progress, played.layers)
    base = hand_coded("joint")["joint_linear"](progress, played.layers)
    assert torch.equal(now["weight_noise"], base["weight_noise"]) and torch.equal(now["noise_mean"], base["noise_mean"])
    assert not torch.allclose(now["freeze_fraction"], base["freeze_fraction"], atol=1e-3)


def test_start_at_a_schedule_file(cli: Cli, config: Path, trained: Path, tmp_path: Path) -> None:
    start = f"--schedule.start={trained / 'schedule.json'}"
    assert cli("train", config, "--folder", tmp_path / "run", start, "--meta.steps=0", "--compare.horizons=[1]") == 0
    now, then = (read_schedule(f / "schedule.json") for f in (tmp_path / "run", trained))
    assert now.provenance.citation == f"learned by metasched, starting at {trained.name}"
    assert now.provenance.spent == then.provenance.spent  # that of the start, and no steps of its own
    first, second = (torch.tensor(f.values["freeze_fraction"]) for f in (now, then))
    torch.testing.assert_close(first, second, rtol=0, atol=0.02)  # the even share of a schedule network


def test_start_at_the_best(cli: Cli, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--meta.steps=0", "--meta.select_runs=1", "--compare.baselines=[]", "--compare.horizons=[1]"]
    assert cli("train", config, "--folder", tmp_path / "run", "--schedule.start=best", *short, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    tried = [r for r in read_json_lines(tmp_path / "run" / "metrics.jsonl") if "select/name" in r]
    first_best = max(tried, key=lambda r: r["select/score"])["select/name"]
    assert result["start"] == first_best and len(tried) > 5
    assert result["inner_steps"] == {"selecting": 6 * len(tried), "learning": 0, "confirming": 0}
    spent = read_schedule(tmp_path / "run" / "schedule.json").provenance.spent
    assert [(s.by, s.inner_steps) for s in spent] == [("best", 6 * len(tried))]


def test_wandb_offline(cli: Cli, config: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert cli("train", config, "--folder", folder, "--tracking.wandb=offline") == 0
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    logged, waited = (b"outer/gradient_norm", b"comparison_6"), 0
    while not all(name in file.read_bytes() for name in logged):  # wandb's own process writes on for a moment
        assert (waited := waited + 1) < 600, "not logged within a minute"
        time.sleep(0.1)
    assert files(folder)[1] == files(trained)[1]


def test_wandb_that_fails_in_the_middle_costs_one_warning(
    cli: Cli,
    config: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logged = []

    class Failing(Memory):
        def __init__(self, *_: object, **__: object) -> None:
            super().__init__()

        def log(self, metrics: Any) -> None:
            logged.append(metrics)
            if len(logged) == 2:
                raise ConnectionError("gone")

    monkeypatch.setattr(opening, "Wandb", Failing)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli("train", config, "--folder", tmp_path / "run", "--tracking.wandb=offline") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metasched: warning: Failing failed (ConnectionError: gone)") and len(logged) == 2
    assert files(tmp_path / "run")[1] == files(trained)[1] and (tmp_path / "run" / "DONE").exists()


def test_compare_plays_the_file_as_train_did(cli: Cli, config: Path, trained: Path, tmp_path: Path) -> None:
    assert cli("compare", config, "--folder", tmp_path / "run", "--schedule", trained / "schedule.json") == 0
    now, then = files_of(tmp_path / "run"), files_of(trained)
    assert now["seeds"] == then["seeds"] and now["learned"] == [trained.name]
    renamed = [{**arm, "name": trained.name} if arm["name"] == "learned" else arm for arm in then["arms"]]
    assert [(a["name"], a["horizon"], a["scores"]) for a in now["arms"]] == [
        (a["name"], a["horizon"], a["scores"]) for a in renamed
    ]


def test_many_schedules_leave_a_table_that_fits_a_terminal(
    cli: Cli, config: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["b", "a", "c"]
    files = [Path(shutil.copy(trained / "schedule.json", tmp_path / f"{name}.json")) for name in names]
    assert cli("compare", config, "--folder", tmp_path / "run", "--schedule", *files) == 0
    said = capsys.readouterr().out
    table = said[said.index("Hardened test score") :].split("report: ")[0].splitlines()
    assert max(len(line) for line in table if line.startswith("  ")) <= 80
    shown = {line.split()[0] for line in table if line.startswith("  ")}
    assert {*names, "ste", "lsq", "float"} <= shown
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert all(f"Differences of {name}" in report for name in names)


@pytest.mark.filterwarnings("default:.*has not seen them")  # it is what is asked for here
def test_layers_of_a_kind_that_was_not_learned_are_named(
    cli: Cli, config: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["--schedule", trained / "schedule.json", "--task.model=convnet", "--compare.horizons=[1]"]
    assert cli("compare", config, *ask, "--folder", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert (
        "the schedule has layers of kind linear only: conv layers (conv1, conv2, conv3) follow a network that" in said
    )
    assert {arm["name"] for arm in files_of(tmp_path / "run")["arms"]} >= {trained.name}


def files_of(folder: Path) -> Any:
    return json.loads((folder / "comparison.json").read_text())
