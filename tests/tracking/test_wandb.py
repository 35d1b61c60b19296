"""A real offline run, read back with wandb's own reader."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metasched.config.schema import Experiment
from metasched.io.run_folder import RunFolder
from metasched.meta.config import MetaConfig
from metasched.tracking.config import TrackingConfig
from metasched.tracking.metrics import AXES
from metasched.tracking.opening import open_tracker
from metasched.tracking.plots import plot_comparison

pytest.importorskip("wandb")


def records(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    experiment = Experiment(name="group_name", seed=7, meta=MetaConfig(steps=3), tracking=TrackingConfig(project="p"))
    before = dict(os.environ)
    tracker = open_tracker(experiment, folder, "train")
    tracker.log({"select/name": "cosine", "select/score": 0.5})
    for step, loss in enumerate([0.5, math.nan, 0.25], 1):
        tracker.log({"outer/step": step, "outer/loss": loss})
    for u in (0.0, 0.5, 1.0):
        tracker.log({"schedule/progress": u, "schedule/weight_noise/features.0.conv": 1 - u})
    folder.schedule.write_text('{"a": 1}')
    tracker.artifact(folder.schedule, "learned", "schedule", {"sha256": "ab"})
    tracker.table("comparison", ["arm", "score"], [["learned", 0.75]])
    plot_comparison(folder.path / "dots.png", {30: {"learned": [0.75, 0.5]}}, ["learned"])
    tracker.picture("scores_by_arm", folder.path / "dots.png")
    tracker.log({"compare/index": 0, "compare/arm": "ste", "compare/score": 0.25})
    tracker.log({"result/learned": 0.75, "result/difference": 0.125})
    tracker.close()
    assert {k: v for k, v in os.environ.items() if k in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")} == {
        k: v for k, v in before.items() if k in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")
    }
    return folder.path, records(folder.path)


def test_identity_and_config(run) -> None:
    (record,) = [r["run"] for r in run[1] if r["type"] == "run"]
    assert (record["run_group"], record["job_type"], record["project"]) == ("group_name", "train", "p")
    assert record["tags"] == ["joint", "weights ternary", "activations ternary", "sweep", "digits"]
    assert record["notes"] == "metasched train: joint on digits, 100 steps, starting at best, seed 7"
    assert record["display_name"] == "joint-best-s7"
    config = record["config"]["update"]
    assert config["meta"]["steps"] == 3 and config["seed"] == 7 and config["method"]["name"] == "joint"


def test_each_family_has_its_axis(run) -> None:
    metrics = [r["metric"] for r in run[1] if r["type"] == "metric"]
    assert {m["glob_name"]: m["step_metric"] for m in metrics if "step_metric" in m} == AXES
    assert AXES["outer/*"] == "outer/step" and AXES["compare/*"] == "compare/index"


def test_the_summary_has_the_result_and_no_last_row_of_the_last_arm(run) -> None:
    found: dict[str, Any] = {}
    for record in (r["summary"] for r in run[1] if r["type"] == "summary"):
        for entry in record.get("update", {}).items() if isinstance(record.get("update"), dict) else []:
            found[entry[0]] = entry[1]
    assert found["result/learned"] == 0.75 and found["result/difference"] == 0.125
    assert "outer/loss" in found and not {"compare/score", "compare/arm", "select/score"} & {*found}
    history = [r["history"]["item"] for r in run[1] if r["type"] == "history"]
    assert any(row.get("compare/score") == 0.25 for row in history)
    assert not any(name.startswith("result/") for row in history for name in row)


def test_every_row_arrives_with_its_axis(run) -> None:
    rows = [r["history"]["item"] for r in run[1] if r["type"] == "history"]
    ours = [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]
    assert ours[:7] == [
        {"select/name": "cosine", "select/score": 0.5},
        {"outer/step": 1, "outer/loss": 0.5},
        {"outer/step": 2, "outer/loss": "NaN"},
        {"outer/step": 3, "outer/loss": 0.25},
        {"schedule/progress": 0, "schedule/weight_noise/features.0.conv": 1},
        {"schedule/progress": 0.5, "schedule/weight_noise/features.0.conv": 0.5},
        {"schedule/progress": 1, "schedule/weight_noise/features.0.conv": 0},
    ]
    assert all(key.startswith("comparison.") for key in ours[7])


def test_schedule_is_an_artifact_and_stays_in_the_run_folder(run) -> None:
    folder, lines = run
    artifacts = {r["artifact"]["name"]: r["artifact"] for r in lines if r["type"] == "artifact"}
    schedule = artifacts["learned"]
    assert schedule["type"] == "schedule" and json.loads(schedule["metadata"]) == {"sha256": "ab"}
    (content,) = schedule["manifest"]["contents"]
    assert content["path"] == "schedule.json"
    assert Path(content["local_path"]).read_text() == '{"a": 1}'
    assert Path(content["local_path"]).is_relative_to(folder)


def test_table_of_the_comparison(run) -> None:
    (file,) = run[0].glob("wandb/offline-run-*/files/media/table/comparison_*.table.json")
    table = json.loads(file.read_text())
    assert (table["columns"], table["data"]) == (["arm", "score"], [["learned", 0.75]])


def test_picture_of_the_comparison(run) -> None:
    folder, lines = run
    (file,) = folder.glob("wandb/offline-run-*/files/media/images/scores_by_arm_*.png")
    assert file.read_bytes() == (folder / "dots.png").read_bytes()
    rows = [r["history"]["item"] for r in lines if r["type"] == "history"]
    assert any(row.get("scores_by_arm._type") == "image-file" for row in rows)


def test_a_resumed_run_goes_on_under_its_id(tmp_path: Path) -> None:
    folder, experiment = RunFolder(tmp_path), Experiment()
    for _ in range(2):
        open_tracker(experiment, folder, "train").close()
        own = (tmp_path / "wandb_id").read_text().strip()
        assert [f.name for f in tmp_path.glob("wandb/offline-run-*/run-*.wandb")] != []
        assert {f.name for f in tmp_path.glob("wandb/offline-run-*/run-*.wandb")} == {f"run-{own}.wandb"}
    (tmp_path / "wandb_id").write_text("../../elsewhere")
    with pytest.warns(RuntimeWarning, match=r"Wandb failed \(MetaschedError: .*wandb_id: does not hold the id"):
        open_tracker(experiment, folder, "train").close()
