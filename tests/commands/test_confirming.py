"""What a run exports: what was learned where it is better than its start on fresh seeds, or else the start."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

import metasched.evaluation.confirm
from metasched import PlayedSchedule, load_experiment, progress_of_steps, read_schedule
from metasched.cli import main
from metasched.core.randomness import derive_seed
from metasched.evaluation.comparison import comparison_of
from metasched.evaluation.confirm import Confirmation, confirm, steps_to_confirm
from metasched.evaluation.contenders import fresh_seeds
from metasched.evaluation.statistics import Summary, paired_difference
from metasched.exchange.format import Spent
from metasched.families.family import features_of_problem
from metasched.io.json_lines import read_json_lines
from metasched.runs.cells import cell_scores
from metasched.runs.pool import Pool
from metasched.schedules.table import floor_of, hand_coded
from metasched.tracking.console import open_console
from metasched.tracking.metrics import unknown_metrics
from metasched.tracking.tracker import Memory

pytestmark = pytest.mark.usefixtures("blank_plots")

STEPS, RUNS = 4, 3
CONFIG: dict[str, dict[str, Any]] = {
    "task": {"model": "mlp", "width": 3, "steps": STEPS, "batch": 16, "train": 64, "validation": 32, "test": 32},
    "method": {"name": "rates"},
    "schedule": {"start": "floor", "knots": 3, "hidden": 2},
    "meta": {"steps": 2, "runs": 2, "confirm_runs": RUNS},
    "compare": {"seeds": 2, "baselines": []},
    "tracking": {"wandb": "disabled"},
    "run": {"workers": 1, "dtype": "float64"},
}
GAIN = ([0.6, 0.71, 0.9], [0.5, 0.6, 0.8])
NONE = ([0.6, 0.5, 0.9], [0.5, 0.6, 0.8])
NAN = float("nan")


def write(path: Path, **sections: dict[str, Any]) -> Path:
    settings = {name: {**own, **sections.get(name, {})} for name, own in CONFIG.items()}
    path.write_text(yaml.safe_dump({"name": "tiny", **settings}))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.yaml")


class Scored:
    """In place of ``cell_scores`` in confirming: planned scores of what was learned, then of its start."""

    workers = 1

    def __init__(self, learned: Sequence[float], start: Sequence[float]) -> None:
        self.scores = [*learned, *start]

    def map(self, function: Any, arguments: Any) -> Any:
        assert function is cell_scores
        self.asked = list(arguments)
        return iter([self.scores[i * RUNS : (i + 1) * RUNS] for i in range(2)])


def train(
    config: Path, folder: Path, capsys: pytest.CaptureFixture[str], scores: Any = None, *words: str
) -> tuple[dict[str, Any], str]:
    """The result of a run whose confirming gives planned scores, and what it says."""

    def planned(*arguments: Any) -> Confirmation:
        config, learned, start, runs, seed, pool, tracker, console = arguments
        return confirm(
            config, learned, start, runs, seed, pool if scores is None else Scored(*scores), tracker, console
        )

    capsys.readouterr()
    with (
        mock.patch("metasched.commands.confirming.confirm", planned),
        mock.patch.object(metasched.evaluation.confirm, "shares", lambda c, seeds, pool: [seeds]),
    ):
        assert main(["train", str(config), "--folder", str(folder), "--json", *words]) == 0
    out, said = capsys.readouterr()
    return json.loads(out), said


def values(schedule: Callable[..., Any], folder: Path) -> list[torch.Tensor]:
    layers = PlayedSchedule(read_schedule(folder / "schedule.json")).layers
    return list(schedule(progress_of_steps(7), layers).values())


def same(a: Callable[..., Any], b: Callable[..., Any], folder: Path) -> bool:
    return all(torch.equal(x, y) for x, y in zip(values(a, folder), values(b, folder), strict=True))


def arms(folder: Path) -> list[str]:
    return [arm["name"] for arm in json.loads((folder / "comparison.json").read_text())["arms"]]


# --- what is measured ---


def test_the_difference_is_paired_and_of_fresh_seeds(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path / "tiny.yaml", method={"name": "blend"}))
    problem, tracker = experiment.problem, Memory()
    learned, start = hand_coded("blend")["blend_linear"], floor_of(experiment.method, "x")
    with Pool(1) as pool:
        found = confirm(problem, learned, ("floor", start), 4, 7, pool, tracker, open_console(StringIO()))
    rows = [row for row in tracker.rows if "confirm/score" in row]
    assert [row["confirm/arm"] for row in rows] == ["learned"] * 4 + ["start"] * 4
    seeds = [derive_seed(7, "confirm", run) for run in range(4)]
    assert [row["confirm/seed"] for row in rows] == seeds * 2
    assert not set(seeds) & {*fresh_seeds(7, 4), *(derive_seed(7, "select", run) for run in range(4))}
    scores = [row["confirm/score"] for row in rows]
    assert found.difference == paired_difference(scores[:4], scores[4:]) and found.start == "floor"  # type: ignore[arg-type]
    assert found.score.mean == pytest.approx(sum(scores[4:]) / 4) and found.score.n == 4  # type: ignore[arg-type]
    assert found.inner_steps == steps_to_confirm(4, STEPS) == 32
    assert unknown_metrics(name for row in tracker.rows for name in row) == []
    assert tracker.rows[-1]["confirm/gain"] is found.gain


@pytest.mark.parametrize(
    ("learned", "start", "gain"),
    [
        (*GAIN, True),
        ([0.6, 0.7, 0.9], [0.5, 0.6, 0.8], False),  # all differences are equal: p of the sign test is 1/4
        (*NONE, False),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], False),
        ([0.5 + 1e-9] * 3, [0.5] * 3, False),  # a difference that is rounding
        ([0.9, 0.9, NAN], [0.5, 0.6, 0.4], False),
        ([0.7, 0.8, 0.75], [NAN, NAN, NAN], True),
        ([NAN] * 3, [NAN] * 3, False),
        ([0.5, 0.6, 0.8], [0.6, 0.7, 0.91], False),  # clearly worse
    ],
)
def test_which_scores_are_a_gain(config: Path, learned: list[float], start: list[float], gain: bool) -> None:
    experiment = load_experiment(config)
    floor, pool = floor_of(experiment.method, "x"), Scored(learned, start)
    with mock.patch.object(metasched.evaluation.confirm, "shares", lambda c, seeds, pool: [seeds]):
        found = confirm(experiment.problem, floor, ("floor", floor), RUNS, 0, pool, Memory(), open_console(StringIO()))
    assert found.gain is gain
    assert {part for *_, part in pool.asked} == {"validation"}


def test_the_line_says_over_what_and_what_is_exported() -> None:
    d = paired_difference([0.5, 0.7, 0.6], [0.5, 0.6, 0.6])
    found = Confirmation("floor", Summary(0.6, 0.1, 3), d, 24)
    assert str(found) == (
        "no gain over the floor at this learning rate: +0.0333 [-0.1101, +0.1768] on 3 fresh meta-validation seeds; "
        "schedule.json is the start"
    )
    assert str(found._replace(start="inq_linear")).startswith("no gain over the start (inq_linear): ")
    better = found._replace(difference=paired_difference(*GAIN))
    assert str(better).startswith(
        "gain over the floor at this learning rate: +0.1033 ["
    ) and "is what was learned" in str(better)


# --- what is exported ---


def test_a_gain_is_exported(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    result, said = train(config, folder, capsys, GAIN)
    file = read_schedule(folder / "schedule.json")
    assert file.provenance.kind == "learned" and not (folder / "schedule_learned.json").exists()
    assert file.version == 2 and file.form is not None and (file.form.kind, file.form.base) == ("network", "floor")
    assert file.task == features_of_problem(load_experiment(config).problem)
    assert "the file of what was learned holds a formula" in said
    assert file.provenance.spent == (Spent(by="sweep", inner_steps=16), Spent(by="confirm", inner_steps=24))
    assert result["exported"] == "learned" and result["confirmed"]["gain"] is True
    assert result["inner_steps"] == {"selecting": 0, "learning": 16, "confirming": 24}
    assert "gain over the floor at this learning rate: +0.1033 [" in said and "24 to confirm" in said
    assert "start" not in arms(folder)


def test_without_a_gain_the_start_is_exported_and_nothing_is_lost(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, gained = tmp_path / "run", tmp_path / "gained"
    result, said = train(config, folder, capsys, NONE)
    train(config, gained, capsys, GAIN)
    assert (folder / "schedule_learned.json").read_bytes() == (gained / "schedule.json").read_bytes()
    file = read_schedule(folder / "schedule.json")
    floor = floor_of(load_experiment(config).method, "x")
    assert same(PlayedSchedule(file), floor, folder)
    assert not same(PlayedSchedule(read_schedule(folder / "schedule_learned.json")), floor, folder)
    source = file.provenance
    assert (source.kind, source.name, source.outer_steps) == ("hand-coded", "floor", None)
    assert source.spent == (Spent(by="sweep", inner_steps=16), Spent(by="confirm", inner_steps=24))
    assert source.citation is not None
    assert source.citation.startswith("metasched learned from this schedule without a gain: +0.0333 [")
    line = "no gain over the floor at this learning rate: +0.0333 ["
    assert said.count(line) == 2 and "schedule.json is the start" in said  # when it is found, and after the verdict
    assert line in (folder / "report.html").read_text()
    written = json.loads((folder / "comparison.json").read_text())
    assert written["confirmed"] == result["confirmed"] and result["exported"] == "start"
    assert result["confirmed"]["difference"] == paired_difference(*NONE)._asdict()
    assert arms(folder) == ["learned", "start", "ste", "lsq", "float"]
    assert comparison_of(written).learned == ("learned",)
    found = {arm["name"]: arm["scores"] for arm in written["arms"]}
    assert found["start"] == found["ste"]  # the floor of rates
    assert source.metric is not None and source.metric.name == "hardened test score after 4 steps"
    assert (source.metric.value, source.metric.n) == (pytest.approx(sum(found["start"]) / 2), 2)
    (artifact,) = (row for row in read_json_lines(folder / "metrics.jsonl") if "artifact" in row)
    assert artifact["file"] == "schedule.json"
    assert artifact["metadata"]["test_score"] == pytest.approx(sum(found["start"]) / 2)


def test_a_start_that_is_compared_is_not_compared_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(
        tmp_path / "tiny.yaml",
        method={"name": "blend"},
        schedule={"start": "blend_linear"},
        compare={"baselines": ["blend_linear", "blend_cubic"]},
    )
    _, said = train(config, tmp_path / "run", capsys, NONE)
    assert "no gain over the start (blend_linear): +0.0333 [" in said
    assert arms(tmp_path / "run") == ["learned", "ste", "lsq", "float", "blend_linear", "blend_cubic"]
    played = PlayedSchedule(read_schedule(tmp_path / "run" / "schedule.json"))
    assert same(played, hand_coded("blend")["blend_linear"], tmp_path / "run")


def test_a_start_from_a_file_keeps_its_values_and_where_it_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    train(write(tmp_path / "first.yaml", meta={"confirm_runs": 0}), first, capsys)
    given = first / "schedule.json"
    config = write(tmp_path / "tiny.yaml", schedule={"start": str(given)})
    _, said = train(config, tmp_path / "run", capsys, NONE)
    then, now = (read_schedule(path) for path in (given, tmp_path / "run" / "schedule.json"))
    assert (now.values, now.progress, now.interpolation) == (then.values, then.progress, then.interpolation)
    assert now.form == then.form is not None and now.task == then.task
    assert "which other networks play by depth: what it starts at is no hand-coded schedule" in said
    assert read_schedule(tmp_path / "run" / "schedule_learned.json").form is None
    assert now.provenance.kind == then.provenance.kind == "learned" and now.provenance.outer_steps == 2
    assert now.provenance.citation is not None and then.provenance.citation is not None
    assert now.provenance.citation.endswith(f". {then.provenance.citation}")
    spent = [(entry.by, entry.inner_steps) for entry in now.provenance.spent]
    assert spent == [("sweep", 16), ("sweep", 16), ("confirm", 24)]
    assert arms(tmp_path / "run")[:2] == ["learned", "start"]


def test_nothing_is_confirmed_if_it_is_switched_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, folder = write(tmp_path / "tiny.yaml", meta={"confirm_runs": 0}), tmp_path / "run"
    with mock.patch("metasched.commands.confirming.confirm", lambda *_: pytest.fail("confirmed")):
        capsys.readouterr()
        assert main(["train", str(config), "--folder", str(folder), "--json"]) == 0
    out, said = capsys.readouterr()
    result = json.loads(out)
    assert result["confirmed"] is None and result["exported"] == "learned" and result["inner_steps"]["confirming"] == 0
    assert "was not confirmed to be better than its start: meta.confirm_runs is 0" in said
    assert read_schedule(folder / "schedule.json").provenance.spent == (Spent(by="sweep", inner_steps=16),)
    assert "confirmed" not in json.loads((folder / "comparison.json").read_text())


def test_one_run_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config), "--meta.confirm_runs=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "meta.confirm_runs: is 1, and one run has no interval; set it to 2 or more, or to 0 for none" in line


# --- stopped and resumed ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run, which ends without a gain."""
    place = tmp_path_factory.mktemp("whole")
    assert main(["train", str(write(place / "tiny.yaml")), "--folder", str(place / "run")]) == 0
    assert (place / "run" / "schedule_learned.json").exists()
    return place / "run"


@pytest.mark.parametrize(
    ("function", "call"),
    [
        *(("metasched.runs.cells.train_each", call) for call in (1, RUNS + 1, 2 * RUNS)),
        *(("metasched.commands.confirming.write_schedule", call) for call in (1, 2)),
    ],
)
def test_a_run_that_is_stopped_while_it_confirms_leaves_the_same_bytes(
    config: Path, whole: Path, tmp_path: Path, function: str, call: int
) -> None:
    plain, calls, folder = pkgutil.resolve_name(function), [], tmp_path / "run"

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return plain(*arguments)

    with mock.patch(function, interrupted):
        assert main(["train", str(config), "--folder", str(folder)]) == 130
    assert not (folder / "schedule.json").exists()
    assert main(["train", "--resume", str(folder)]) == 0
    for name in ("schedule.json", "schedule_learned.json", "comparison.json", "cells.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    rows = [read_json_lines(f / "metrics.jsonl") for f in (folder, whole)]
    timeless = [[{k: v for k, v in row.items() if k != "outer/seconds"} for row in own] for own in rows]
    assert timeless[0] == timeless[1]
