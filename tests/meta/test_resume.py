"""A run that was stopped goes on as if it had not been: same bits in the loop, same files from the command line.

A step of the outer loop is a function of the state before it. So it is enough, for each method, estimator and save
point, that the step after a state that was written and read gives the bits of the uninterrupted run.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from learning import learn, runs_of

import metasched.commands.train
import metasched.meta.resume
from metasched.cli import main
from metasched.config.schema import Experiment
from metasched.config.writing import to_dict
from metasched.core.randomness import derive_seed
from metasched.estimators import ESTIMATORS
from metasched.io.run_folder import RunFolder
from metasched.meta.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from metasched.meta.config import MetaConfig
from metasched.meta.outer import OuterState, OuterStep
from metasched.meta.resume import resumable_state
from metasched.methods.config import MethodConfig
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.learnable import LearnableSchedule, build_learnable
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.problem import build_problem

pytestmark = pytest.mark.usefixtures("blank_plots")

METHODS = ("ana", "inq", "joint")
STEPS, WINDOW, OUTER = 4, 2, 4  # two windows in a run: after outer steps 1 and 3 particles stand in the middle


class Enough(Exception):
    pass


class Recorder:
    """Keeps the states and rows of a run, and stops it after so many states."""

    def __init__(self, most: int = 100) -> None:
        self.states: list[OuterState] = []
        self.rows: list[OuterStep] = []
        self.most = most

    def save(self, state: OuterState) -> None:
        self.states.append(state)
        if len(self.states) == self.most:
            raise Enough


def experiment_of(method: str, estimator: Any) -> Experiment:
    return Experiment(
        task=TaskConfig(model="mlp", width=2, steps=STEPS, batch=4, train=16, validation=8, test=8),
        method=MethodConfig(name=method),  # type: ignore[arg-type]
        schedule=ScheduleConfig(
            knots=3, hidden=2, directions=None, kind="family" if estimator == "forward" else "network"
        ),
        meta=MetaConfig(steps=OUTER, runs=1 if estimator == "forward" else 2, estimator=estimator, window=WINDOW),
        run=RunConfig(workers=1),
    )


def schedule_of(experiment: Experiment) -> LearnableSchedule:
    network = build_problem(experiment.problem).network
    controls = network.method.controls
    base = hand_coded(experiment.method.name)[f"{experiment.method.name}_linear"]
    learn = [c.name for c in controls]
    if experiment.meta.estimator == "forward":  # which takes a run for each parameter
        learn = learn[-1:]
    seed = derive_seed(0, "schedule network")
    return build_learnable(experiment.schedule, controls, base, learn, network.layers, seed)


def bits(value: Any) -> Any:
    """Everything but the time, comparable to the bit, NaN included."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if isinstance(value, OuterStep):
        return bits({k: v for k, v in value._asdict().items() if k != "seconds"})
    if isinstance(value, OuterState):
        return bits(value._asdict())
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return repr(value)


@pytest.fixture(autouse=True)
def _single_precision() -> None:
    torch.set_default_dtype(torch.float32)  # as the command line has it


@pytest.mark.parametrize(
    ("method", "estimator"),
    [
        pytest.param(m, e, marks=pytest.mark.slow if e == "forward" and m != "joint" else ())
        for m in METHODS
        for e in sorted(ESTIMATORS)
    ],
)
def test_every_save_point_goes_on_with_the_same_bits(tmp_path: Path, method: str, estimator: str) -> None:
    experiment = experiment_of(method, estimator)
    whole = Recorder()
    trained = learn(
        experiment,
        schedule_of(experiment),
        Pool(1),
        whole.rows.append,
        None,
        whole.save,
    )
    assert [state.step for state in whole.states] == list(range(OUTER + 1))
    if estimator in ("pes", "nres"):
        stands = [int(s.estimator["particle0/step"]) for s in whole.states[1:]]
        assert sorted(set(stands)) == [0, WINDOW]  # window edges and the middle of runs are among the save points
    for point, state in enumerate(whole.states):
        folder = RunFolder(tmp_path / str(point))
        folder.path.mkdir()
        write_checkpoint(folder.checkpoint, Checkpoint(to_dict(experiment), {}, "start", "base", 0, 0, state))
        schedule = schedule_of(experiment)
        checkpoint = read_checkpoint(folder.checkpoint)
        since = resumable_state(checkpoint, folder, "base", schedule, runs_of(experiment, Pool(1)))
        assert bits(since) == bits(state)
        for p in schedule.parameters():
            p.data.fill_(0.123)  # nothing comes from anywhere but the file
        again = Recorder(most=2)
        if point == OUTER:
            learn(
                experiment,
                schedule,
                Pool(1),
                again.rows.append,
                since,
                again.save,
            )
            assert bits(schedule.state_dict()) == bits(trained.schedule.state_dict())
            later = [s.parameters for s in whole.states[OUTER // 2 + 1 :]]
            for name, p in schedule.named_parameters():
                torch.testing.assert_close(p.detach(), torch.stack([own[name] for own in later]).mean(0))
        else:
            with pytest.raises(Enough):
                learn(
                    experiment,
                    schedule,
                    Pool(1),
                    again.rows.append,
                    since,
                    again.save,
                )
            assert bits(again.states) == bits(whole.states[point : point + 2])
            assert bits(again.rows) == bits(whole.rows[point : point + 1])


# --- the command line ---

CONFIG = {
    "name": "tiny",
    "task": {"model": "mlp", "width": 3, "steps": 4, "batch": 16, "train": 64, "validation": 32, "test": 32},
    "method": {"name": "inq"},
    "schedule": {"start": "best", "knots": 4, "hidden": 4, "directions": None},
    "meta": {"steps": 3, "runs": 2, "select_runs": 1, "confirm_runs": 0, "estimator": "pes", "window": 2},
    "compare": {"seeds": 2, "baselines": ["inq_linear"]},
    "tracking": {"wandb": "disabled"},
    "run": {"workers": 1},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    torch.set_default_dtype(torch.float32)
    assert run("train", config, "--folder", folder) == 0
    return folder


@pytest.fixture
def stopped(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a run that was stopped after outer step 2."""
    stop_at(monkeypatch, "write_checkpoint", 3)
    assert run("train", config, "--folder", tmp_path / "run") == 130
    monkeypatch.undo()
    yield tmp_path / "run"


def run(*arguments: str | Path) -> int:
    return main([str(a) for a in arguments])


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Interrupts ``train`` before the given call (from 0) of one of its functions."""
    function: Callable[..., Any] = getattr(metasched.commands.train, name)
    calls = []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > call:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    monkeypatch.setattr(metasched.commands.train, name, interrupted)


def left(folder: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """Schedule, comparison and all rows without their times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    timeless = [{k: v for k, v in row.items() if k != "outer/seconds"} for row in rows]
    return (folder / "schedule.json").read_bytes(), (folder / "comparison.json").read_bytes(), timeless


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("best_start", 0),
        ("write_checkpoint", 0),  # nothing saved: starts over
        ("write_checkpoint", 1),
        ("write_checkpoint", 3),  # a row of metrics after the last save
        ("export_confirmed", 0),
        ("compare", 0),
        ("publish", 0),
    ],
)
def test_a_stopped_run_leaves_what_a_whole_one_leaves(
    config: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    function: str,
    call: int,
) -> None:
    folder = tmp_path / "run"
    stop_at(monkeypatch, function, call)
    assert run("train", config, "--folder", folder) == 130
    said = capsys.readouterr().err
    assert said == f"metasched: interrupted; go on with `metasched train --resume {folder}`\n"
    monkeypatch.undo()
    assert run("train", "--resume", folder) == 0
    assert left(folder) == left(whole) and (folder / "DONE").exists()
    assert capsys.readouterr().err == ""


def test_cells_that_are_done_are_not_done_again(
    config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    stop_at(monkeypatch, "publish", 0)
    assert run("train", config, "--folder", folder) == 130
    monkeypatch.undo()
    monkeypatch.setattr("metasched.runs.cells.train_each", lambda *_: pytest.fail("trained again"))
    assert run("train", "--resume", folder) == 0
    assert left(folder) == left(whole)


def test_a_finished_run_is_extended_with_the_bits_of_one_that_was_longer_from_the_start(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    assert run("train", config, "--folder", short, "--meta.steps=3") == 0
    before = {p.name: p.read_bytes() for p in short.iterdir() if p.is_file()}
    capsys.readouterr()
    assert run("train", "--resume", short, "--meta.steps=4") == 2
    said = capsys.readouterr().err
    assert "error: meta.steps: is 4: what is learned is the mean over the last half" in said
    assert "give at least 6, or start a new run" in said
    assert run("train", "--resume", short, "--meta.steps=3") == 2
    assert "holds a run that has finished, of 3 outer steps" in capsys.readouterr().err
    after = {p.name: p.read_bytes() for p in short.iterdir() if p.is_file()}
    assert {n: b for n, b in after.items() if n != "PID"} == {n: b for n, b in before.items() if n != "PID"}
    assert run("train", "--resume", short, "--meta.steps=6") == 0
    assert run("train", config, "--folder", long, "--meta.steps=6") == 0
    assert left(short) == left(long) and (short / "DONE").exists()
    assert (short / "config.resolved.yaml").read_bytes() == (long / "config.resolved.yaml").read_bytes()


def test_a_finished_run_is_not_run_again(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    assert run("train", "--resume", whole) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"metasched: error: {whole}: holds a run that has finished; read its results, or start a new run"
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_a_run_that_is_going_on_is_left_alone(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    going_on = RunFolder.resume(stopped)
    before = read_checkpoint(going_on.checkpoint)
    assert run("train", "--resume", stopped) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{stopped}: is in use by process {(stopped / 'PID').read_text().split()[0]};" in line
    assert bits(read_checkpoint(going_on.checkpoint).state) == bits(before.state)
    going_on.release()


def test_a_field_that_differs_is_refused_by_name(
    config: Path, stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file() and p.name != "PID"}
    capsys.readouterr()
    assert run("train", config, "--resume", stopped, "--meta.lr=0.2", "--meta.steps=9") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "metasched: error: meta.steps: is 9, and 3 in the run that is resumed; leave it as it was, or add "
        "`--allow meta.steps` and answer for it"
    )
    assert run("train", "--resume", stopped, "--allow", "meta.stps") == 2
    assert "--allow: unknown name 'meta.stps'; did you mean 'meta.steps'?" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file() and p.name != "PID"} == before
    assert run("train", config, "--resume", stopped) == 0
    assert left(stopped) == left(whole)


def test_a_field_that_is_allowed_is_written_down(stopped: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow = ["--compare.seeds=3", "--allow", "compare.seeds"]
    stop_at(monkeypatch, "compare", 0)
    assert run("train", "--resume", stopped, *allow) == 130
    monkeypatch.undo()
    assert run("train", "--resume", stopped) == 0  # it goes on with what was allowed
    first, second = (json.loads(line) for line in (stopped / "resumes.jsonl").read_text().splitlines())
    assert first["allowed"] == {"compare.seeds": {"was": 2, "is": 3}} and second["allowed"] == {}
    assert first["environment"]["torch"]
    now, then = (json.loads(left(folder)[0]) for folder in (stopped, whole))
    assert now["values"] == then["values"]
    assert len(json.loads(left(stopped)[1])["seeds"]) == 3


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("schedule.hidden=5", "checkpoint.pt: state.parameters."),
        ("meta.estimator=sweep", "checkpoint.pt: state.estimator.particle0/"),
        ("meta.steps=1", "checkpoint.pt: state.step: is 2, and the run has 1 outer steps;"),
    ],
)
def test_what_is_allowed_but_does_not_fit_leaves_the_run_as_it_was(
    stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str], field: str, expected: str
) -> None:
    before = (stopped / "config.resolved.yaml").read_bytes(), (stopped / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    assert run("train", "--resume", stopped, f"--{field}", "--allow", field.split("=")[0]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metasched: error: ") and expected in line
    assert ((stopped / "config.resolved.yaml").read_bytes(), (stopped / "checkpoint.pt").read_bytes()) == before
    assert run("train", "--resume", stopped) == 0
    assert left(stopped) == left(whole)


def test_a_configuration_that_was_edited_is_refused(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resolved = stopped / "config.resolved.yaml"
    resolved.write_text(resolved.read_text().replace("seed: 0", "seed: 1", 1))
    capsys.readouterr()
    assert run("train", "--resume", stopped) == 2
    assert "metasched: error: seed: is 1, and 0 in the run that is resumed;" in capsys.readouterr().err


def test_a_start_that_has_changed_is_refused(
    config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start.json"
    start.write_bytes((whole / "schedule.json").read_bytes())
    stop_at(monkeypatch, "write_checkpoint", 2)
    folder = tmp_path / "run"
    assert run("train", config, "--folder", folder, f"--schedule.start={start}", "--meta.select_runs=4") == 130
    monkeypatch.undo()
    tree = json.loads(start.read_text())
    del tree["form"]  # which would contradict the table that is moved
    start.write_text(json.dumps(_moved(tree)))
    capsys.readouterr()
    assert run("train", "--resume", folder) == 2
    assert "schedule.start: start has other values than when the run started;" in capsys.readouterr().err


def _moved(file: dict[str, Any]) -> dict[str, Any]:
    """A schedule file with one value moved, as far as its order allows."""
    for curve in file["values"]["freeze_fraction"]:
        curve[1] = (curve[0] + curve[1]) / 2
    return file


def test_a_torn_last_line_is_dropped_with_one_warning(
    stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(stopped / "metrics.jsonl", "ab") as file:
        file.write(b'{"outer/st')
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("train", "--resume", stopped) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metasched: warning: ") and "metrics.jsonl: the last line is incomplete" in line
    assert left(stopped) == left(whole)


@pytest.mark.parametrize(
    ("file", "damage", "expected"),
    [
        ("metrics.jsonl", lambda data: data[:5] + b"\n" + data[9:], "metrics.jsonl: line 1: is not JSON;"),
        ("metrics.jsonl", lambda data: data.split(b"\n")[0] + b"\n", "metrics.jsonl: has no end of a line after "),
        (
            "metrics.jsonl",
            lambda data: data.replace(b"inq_", b"inq__", 1),
            "metrics.jsonl: has no end of a line after ",
        ),
        ("metrics.jsonl", lambda data: b"[]\n" + data, "metrics.jsonl: line 1: is not a JSON object;"),
        ("cells.jsonl", lambda data: b"{}\n" + data, "cells.jsonl: line 1: does not hold scores;"),
        ("cells.jsonl", lambda data: b"[" * 100_000 + b"\n" + data, "cells.jsonl: line 1: is not JSON;"),
        ("checkpoint.pt", lambda data: data[:-100], "checkpoint.pt: is not a checkpoint, or holds more than plain"),
        ("config.resolved.yaml", lambda data: b"name: [", "config.resolved.yaml: "),
    ],
)
def test_damage_is_one_line(
    stopped: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    damage: Callable[[bytes], bytes],
    expected: str,
) -> None:
    path = stopped / file
    path.write_bytes(damage(path.read_bytes()))
    capsys.readouterr()
    assert run("train", "--resume", stopped) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metasched: error: ") and expected in line


def test_other_versions_cost_one_warning(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metasched.meta.resume, "version", lambda name: "0.0.1")
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("train", "--resume", stopped) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoint.pt: was written with " in line and "bits may differ" in line
