"""Every file that a release has written is read for ever."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from metasched.config.load import load_experiment
from metasched.config.writing import dump_yaml, to_dict
from metasched.core.errors import MetaschedError
from metasched.evaluation.comparison import Arm, Comparison
from metasched.exchange.pbt import read_policy
from metasched.exchange.player import SchedulePlayer
from metasched.exchange.schedule_file import dumps, read_schedule
from metasched.io.json_lines import read_json_lines
from metasched.meta.checkpoint import read_checkpoint
from metasched.runs.cells import CachedPool
from metasched.runs.pool import Pool
from metasched.tracking.metrics import unknown_metrics

FOLDER = Path(__file__).parent


def schedule(path: Path) -> None:
    file = read_schedule(path)
    assert file.version == 1
    assert dumps(file).encode() == path.read_bytes()  # the canonical text is a part of the format
    values = SchedulePlayer(file, 7).at(6)
    assert all(math.isfinite(v) for layer in values.values() for v in layer.values())


def parametric(path: Path) -> None:
    """Files with a form; what it gives on other layers is in test_forms.py."""
    file = read_schedule(path)
    assert file.version == 2 and file.form is not None
    assert dumps(file).encode() == path.read_bytes()
    values = SchedulePlayer(file, 7, rate=0.01, batches_per_epoch=10.0, pretrained=False).at(6)
    assert all(math.isfinite(v) for layer in values.values() for v in layer.values())


def closed(path: Path) -> None:
    """Files with feedback; what its gains mean is in test_feedback.py."""
    file = read_schedule(path)
    assert file.version == 3 and file.form is not None and len(file.feedback) == 6
    assert dumps(file).encode() == path.read_bytes()
    with pytest.raises(MetaschedError, match="sees neither the loss nor the weights"):
        SchedulePlayer(file, 7)


def one_noise(path: Path) -> None:
    """Files from before weights and activations had a noise each: ``noise_scale`` is that of both."""
    text, file = path.read_text("ascii"), read_schedule(path)
    assert '"noise_scale"' in text and not {"noise_scale"} & file.values.keys()
    old = json.loads(text)
    curves = tuple(tuple(map(float, curve)) for curve in old["values"]["noise_scale"])
    assert file.values["weight_noise"] == file.values["activation_noise"] == curves
    (entry,) = (control for control in old["controls"] if control["name"] == "noise_scale")
    noises = [asdict(control) for control in file.controls if control.name in ("weight_noise", "activation_noise")]
    assert [{**noise, "name": "noise_scale"} for noise in noises] == [{**entry, "scale": "linear"}] * 2
    again = dumps(file)  # with the names of now, and nothing else changed
    tree = json.loads(again)
    others = [control for control in tree["controls"] if control["name"] not in ("weight_noise", "activation_noise")]
    assert others == [control for control in old["controls"] if control["name"] != "noise_scale"]
    for key in old.keys() - {"controls", "values"}:
        assert tree[key] == old[key]
    path.write_text(again)
    schedule(path)


def config(path: Path) -> None:
    experiment = load_experiment(path)
    assert (experiment.name, experiment.optimizer.betas, experiment.compare.horizons) == (
        "released",
        (0.9, 0.95),
        (1, 2),
    )
    unread = {"  backward: noise", "  noise: triangular", "  forward: mode"}  # listed then, for a method without them
    assert set(dump_yaml(to_dict(experiment)).splitlines()) >= set(path.read_text().splitlines()) - unread


def metrics(path: Path) -> None:
    rows = read_json_lines(path)
    kinds = {next((kind for kind in ("table", "artifact") if kind in row), "metrics") for row in rows}
    assert kinds == {"metrics", "table", "artifact"}
    names = {name for row in rows if not row.keys() & {"table", "artifact"} for name in row}
    assert {"outer/loss", "compare/score", "schedule/progress"} <= names and unknown_metrics(names) == []


def comparison(path: Path) -> None:
    result = json.loads(path.read_text("utf-8"))
    arms = [Arm(a["name"], a["horizon"], tuple(a["scores"]), a["inner_steps"]) for a in result["arms"]]
    again = Comparison(tuple(result["seeds"]), tuple(arms), tuple(result["learned"])).to_dict()
    assert again.keys() >= result.keys()
    for old, new in zip(result["arms"], again["arms"], strict=True):
        assert new.keys() >= old.keys() and new["differences"].keys() == old["differences"].keys()
        assert new["mean"] == pytest.approx(old["mean"], abs=1e-12)


def sensitivity(path: Path) -> None:
    result = json.loads(path.read_text("utf-8"))
    assert {"schedule", "runs", "finite_runs", "loss", "score", "verdict", "measures", "table"} <= result.keys()
    rows = [row for table in result["table"].values() for row in table]
    assert rows and all({"layer", "part", "slope", "t", "advice"} <= row.keys() for row in rows)


def checkpoint(path: Path) -> None:
    found = read_checkpoint(path)
    assert (found.config["name"], found.start) == ("released", "inq_linear")
    assert (found.state.step, len(found.state.history)) == (2, 2)
    assert found.state.parameters.keys() == found.state.totals.keys() != set()


def cells(path: Path) -> None:
    before = path.read_bytes()
    with Pool(1) as pool:
        CachedPool(pool, path).close()
    assert path.read_bytes() == before


def policy(path: Path) -> None:
    assert [change.iteration for change in read_policy(path)] == [0, 10, 20]


READERS: dict[str, Callable[[Path], None]] = {
    "schedule_v1.json": one_noise,
    "schedule_v1_joint.json": one_noise,
    "schedule_v1_learned.json": schedule,
    "schedule_v1_noises.json": schedule,
    "schedule_v1_previous.json": schedule,
    "schedule_v2_family.json": parametric,
    "schedule_v2_network.json": parametric,
    "schedule_v2_shared.json": parametric,
    "schedule_v3_feedback.json": closed,
    "config_v1.yaml": config,
    "metrics_v1.jsonl": metrics,
    "comparison_v1.json": comparison,
    "sensitivity_v1.json": sensitivity,
    "checkpoint_v1.pt": checkpoint,
    "cells_v1.jsonl": cells,
    "pbt_policy_ray.txt": policy,
}


def test_the_table_names_every_file() -> None:
    files = {path.name for path in FOLDER.iterdir() if path.suffix not in (".py", ".md") and path.is_file()}
    assert files == set(READERS)


@pytest.mark.parametrize("name", READERS)
def test_a_released_file_is_read(name: str, tmp_path: Path) -> None:
    READERS[name](Path(shutil.copy(FOLDER / name, tmp_path)))
