"""A whole online run of ``metasched train`` against a stand-in for wandb's server, on loopback."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from wandb_standin import Received, standin

from metasched.io.json_lines import read_json_lines
from metasched.tracking.metrics import RESULT

pytest.importorskip("wandb")

CONFIG = """
name: online_group
seed: 3
task: {model: mlp, width: 3, steps: 4, batch: 16, train: 64, validation: 32, test: 32}
method: {name: rates}
schedule: {start: floor, knots: 3, hidden: 2}
meta: {steps: 2, runs: 2, confirm_runs: 2}
compare: {seeds: 2, baselines: []}
tracking: {wandb: online, project: trial}
run: {workers: 1}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, Received], tuple[Path, Received]]:
    """A run, and the same one after a third outer step: its folder, and what the server had received by then."""
    folder = tmp_path_factory.mktemp("online")
    (folder / "tiny.yaml").write_text(CONFIG)
    with standin() as (url, received):
        _metasched(folder, url, "train", str(folder / "tiny.yaml"), "--folder", str(folder / "run"))
        shutil.copytree(folder / "run", folder / "first")
        first = copy.deepcopy(received)
        received.finished = False
        _metasched(folder, url, "train", "--resume", str(folder / "run"), "--meta.steps", "3")
    return (folder / "first", first), (folder / "run", received)


def _metasched(folder: Path, url: str, *words: str) -> None:
    """Runs a command with the server at an address, and nothing of wandb outside of a folder."""
    places = {f"WANDB_{name}_DIR": str(folder / "of_wandb") for name in ("CONFIG", "DATA", "CACHE")}
    given = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "NO_PROXY": "127.0.0.1", **places}
    environment = {name: v for name, v in os.environ.items() if not name.startswith("WANDB_")} | given
    command = [sys.executable, "-m", "metasched", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Wandb failed" not in done.stderr


@pytest.fixture(scope="module")
def run(runs: tuple[tuple[Path, Received], tuple[Path, Received]]) -> tuple[Path, Received]:
    """The run folder, and what the server received."""
    return runs[0]


def test_who_and_what(run: tuple[Path, Received]) -> None:
    sent = run[1].run
    assert (sent["groupName"], sent["jobType"], sent["project"]) == ("online_group", "train", "trial")
    assert sent["tags"] == ["rates", "weights ternary", "activations ternary", "sweep", "digits"]
    assert sent["displayName"] == "rates-floor-s3" and sent["notes"].startswith("metasched train: rates on digits")
    assert sent["name"] == (run[0] / "wandb_id").read_text().strip()
    config = run[1].config
    assert config["meta"]["steps"] == 2 and config["seed"] == 3 and config["method"]["name"] == "rates"


def test_every_row_of_the_run_folder_arrives_in_order(run: tuple[Path, Received]) -> None:
    folder, received = run
    rows = [row for row in read_json_lines(folder / "metrics.jsonl") if not {"artifact", "table", "picture"} & {*row}]
    expected = [row for row in rows if not any(name.startswith(RESULT) for name in row)]
    history = [row for row in received.history if not any(isinstance(value, dict) for value in row.values())]  # media
    assert len(expected) > 10 and len(history) == len(expected)
    for ours, theirs in zip(expected, history, strict=True):
        assert {k: _same(v) for k, v in theirs.items()} == {k: _same(v) for k, v in ours.items()}


def test_the_summary_has_the_result(run: tuple[Path, Received]) -> None:
    folder, received = run
    arms = {arm["name"]: arm["scores"] for arm in json.loads((folder / "comparison.json").read_text())["arms"]}
    summary = received.summary
    assert summary["result/learned"] == pytest.approx(sum(arms["learned"]) / 2)
    assert summary["result/ceiling"] == pytest.approx(sum(arms["float"]) / 2)
    floors = [sum(arms[name]) / 2 for name in ("ste", "lsq")]
    assert any(summary["result/floor"] == pytest.approx(floor) for floor in floors)
    assert {"result/difference", "result/low", "result/high"} <= {*summary}
    assert [name for name in summary if name.startswith("compare/")] == []


def test_files_and_artifacts_arrive_and_the_run_ends(run: tuple[Path, Received]) -> None:
    received = run[1]
    assert received.finished
    kinds = {(one["artifactTypeName"], one["artifactCollectionName"]) for one in received.artifacts}
    assert ("schedule", "online_group") in kinds
    (table,) = (json.loads(v) for name, v in received.files.items() if name.startswith("media/table/comparison_"))
    assert "learned" in {cell for row in table["data"] for cell in row}
    assert any(name.startswith("media/images/scores_by_arm_") for name in received.files)


def test_the_bytes_of_a_schedule_arrive_as_they_are_in_the_folder(run: tuple[Path, Received]) -> None:
    folder, received = run
    kinds = [one["artifactTypeName"] for one in received.artifacts]
    assert sorted(received.committed) == sorted(f"a{k}" for k in range(len(kinds)))
    schedules = [received.uploaded(k) for k, kind in enumerate(kinds) if kind == "schedule"]
    assert schedules == [{"schedule.json": (folder / "schedule.json").read_bytes()}]


def test_a_resumed_run_goes_on_with_the_same_run_of_wandb(
    runs: tuple[tuple[Path, Received], tuple[Path, Received]],
) -> None:
    (_, first), (folder, both) = runs
    assert both.run["name"] == first.run["name"] == (folder / "wandb_id").read_text().strip()
    before = len(first.history)
    assert both.history[:before] == first.history and len(both.history) > before
    assert all(a < b for a, b in itertools.pairwise(both.steps))  # no step goes back
    later = [row["outer/step"] for row in both.history[before:] if "outer/loss" in row]
    assert later == [3]
    assert [row["outer/step"] for row in both.history if "outer/loss" in row] == [1, 2, 3]
    assert both.config["meta"]["steps"] == 3 and both.finished
    schedules = [k for k, one in enumerate(both.artifacts) if one["artifactTypeName"] == "schedule"]
    assert both.uploaded(schedules[-1]) == {"schedule.json": (folder / "schedule.json").read_bytes()}


def _same(value: Any) -> Any:
    """A value as both spell it: what is no number is a text in JSON."""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return value.lower() if value in ("NaN", "nan") else value
