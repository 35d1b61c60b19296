"""``metasched online`` from the configuration to the files, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metasched import PlayedSchedule, load_experiment, progress_of_steps, read_schedule
from metasched.io.json_lines import read_json_lines
from metasched.meta.online import setting_of, train_online
from metasched.runs.cells import cell_score
from metasched.schedules.table import hand_coded
from metasched.tracking.metrics import unknown_metrics

pytestmark = pytest.mark.usefixtures("blank_plots")

Cli = Callable[..., int]
ROOT = Path(__file__).parents[2]
SHORT = ["--online.every=4", "--online.window=2", "--online.lr=0.5"]


@pytest.fixture(scope="module")
def ran(cli: Cli, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with a comparison."""
    folder = tmp_path_factory.mktemp("online") / "run"
    assert cli("online", config, "--compare", *SHORT, "--folder", folder) == 0
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_what_a_run_leaves(ran: Path) -> None:
    left = {p.relative_to(ran).as_posix() for p in ran.rglob("*") if p.is_file()}
    assert left == {
        "DONE",
        "PID",
        "comparison.json",
        "config.resolved.yaml",
        "environment.json",
        "metrics.jsonl",
        "plots/comparison.png",
        "plots/schedule.png",
        "report.html",
        "schedule.json",
    }
    rows = read_json_lines(ran / "metrics.jsonl")
    logged = [row for row in rows if not {"table", "artifact", "picture"} & set(row)]
    assert unknown_metrics(name for row in logged for name in row) == []
    steps = [(row["online/step"], row["online/inner_steps"]) for row in logged if "online/step" in row]
    assert steps == [(4, 6), (6, 10)]
    (artifact,) = (row for row in rows if "artifact" in row)
    assert (artifact["artifact"], artifact["file"]) == ("tiny", "schedule.json")


def test_the_file_holds_what_was_played_and_plays_it_again(cli: Cli, ran: Path, tmp_path: Path) -> None:
    experiment = load_experiment(ran / "config.resolved.yaml")
    file = read_schedule(ran / "schedule.json")
    source, progress = file.provenance, progress_of_steps(6)
    assert file.progress == tuple(progress.tolist()) and source.outer_steps == 2
    assert source.citation is not None and "inq_linear" in source.citation and source.metric is not None
    played = PlayedSchedule(file)
    values = played(progress, played.layers)
    torch.set_default_dtype(torch.float32)
    (seed,) = source.seeds
    assert cell_score(experiment.problem, values, seed, 6, "validation") == source.metric.value
    start = hand_coded("inq")["inq_linear"]
    again = train_online(setting_of(experiment), start, seed)
    assert [(s.by, s.inner_steps) for s in source.spent] == [("online", again.inner_steps)]
    assert torch.equal(again.controls["freeze_fraction"], values["freeze_fraction"])
    assert not torch.allclose(start(progress, played.layers)["freeze_fraction"], values["freeze_fraction"], atol=1e-3)


def test_the_comparison_is_paired_with_that_of_compare(cli: Cli, config: Path, ran: Path, tmp_path: Path) -> None:
    adapted, plain, floor, lsq, ceiling = read(ran / "comparison.json")["arms"]
    assert (adapted["name"], plain["name"]) == ("inq_linear, online", "inq_linear")
    assert (floor["name"], lsq["name"], ceiling["name"]) == ("ste", "lsq", "float")
    assert (adapted["inner_steps"], plain["inner_steps"], adapted["horizon"]) == (20, 12, 6)
    assert cli("compare", config, "--compare.horizons=[1]", "--folder", tmp_path / "run") == 0
    compared = read(tmp_path / "run" / "comparison.json")
    assert compared["seeds"] == read(ran / "comparison.json")["seeds"]
    assert next(a for a in compared["arms"] if a["name"] == "inq_linear")["scores"] == plain["scores"]


def test_the_result_and_the_same_bytes_again(
    cli: Cli, config: Path, ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = ["--json", "--folder", tmp_path / "run"]
    assert cli("online", config, "--compare", *SHORT, *arguments) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err.count("held-out loss") == 2
    assert result["inner_steps"] == {"playing": 6, "looking_ahead": 4, "comparing": 20 + 4 * 12}
    assert (result["start"], result["look_aheads"], result["skipped"]) == ("inq_linear", 2, 0)
    assert result["cost"] > 1 and result["verdict"]["difference"]["n"] == 2
    assert (ran / "schedule.json").read_bytes() == (tmp_path / "run" / "schedule.json").read_bytes()
    assert read(ran / "comparison.json") == read(tmp_path / "run" / "comparison.json")


def test_without_a_comparison_the_test_data_are_left_alone(cli: Cli, config: Path, ran: Path, tmp_path: Path) -> None:
    assert cli("online", config, *SHORT, "--folder", tmp_path / "run") == 0
    assert not (tmp_path / "run" / "comparison.json").exists() and (tmp_path / "run" / "DONE").exists()
    assert (tmp_path / "run" / "schedule.json").read_bytes() == (ran / "schedule.json").read_bytes()


MISTAKES = [
    (["--schedule.start=best"], "schedule.start: best would train under every hand-coded schedule first"),
    (["--schedule.start=inq_liner"], "schedule.start: 'inq_liner' is neither"),
    (["--method.name=ste"], "method.name: there is nothing to learn for ste"),
    (["--schedule.learn=[weight_noise]"], "schedule.learn[0]: inq has no control 'weight_noise'"),
    (["--online.window=9"], "online.window: "),
    (["--online.every=0"], "--online.every: must be at least 1, got 0"),
    (["--online.held_out=33"], "online.held_out: asks for 33 examples, but meta-validation has 32"),
    (["--run.autocast=true", "--run.dtype=float64"], "run.autocast: casts float32 only"),
    (["--task.steps=1"], "task.steps: leaves nothing to look ahead to"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_mistakes(
    cli: Cli,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    place = tmp_path / "runs"
    assert cli("online", config, f"--run.folder={place}", "--online.every=3", "--online.window=1", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metasched: error: ") and expected in line
    assert not place.exists()


def test_interrupt(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metasched", "online", str(config), "--folder", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, "--task.steps=4000"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = next((line for line in process.stdout if line.startswith("step 20/4000")), None)
    assert seen is not None, process.communicate()
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "metasched: interrupted\n")
    left = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    assert left == ["PID", "config.resolved.yaml", "environment.json", "metrics.jsonl"]
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["online/step"] for row in rows[:2]] == [10, 20]
