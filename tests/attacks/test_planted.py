"""What a stranger may plant has no effect: on the disk, on the terminal, or by running anything."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metasched.cli import main
from metasched.config.load import load_experiment
from metasched.core.errors import MetaschedError
from metasched.exchange.format import Metric
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import loads, read_schedule, write_schedule
from metasched.meta.checkpoint import read_checkpoint
from metasched.tracking.console import open_console
from metasched.tracking.plots import plot_comparison
from metasched.training.problem import build_problem

ROOT = Path(__file__).parents[2]
FORMATS = ROOT / "tests" / "formats"
GOLDEN = FORMATS / "schedule_v1_noises.json"
OWNED = "\x1b]0;owned\x07\x1b[2J\x9b1m\r\n\u202egood\ud83d"[:-1]


class Planted:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, ("planted", "w")


def test_the_plant_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Planted())).close()
    assert (tmp_path / "planted").exists()


def planted_checkpoints() -> dict[str, Callable[[dict[str, Any]], object]]:
    """What is done to what a good checkpoint holds."""

    def of_state(**fields: Any) -> Callable[[dict[str, Any]], object]:
        return lambda tree: tree["state"].update(fields)

    def parameter(name: str, value: object) -> Callable[[dict[str, Any]], object]:
        return lambda tree: tree["state"]["parameters"].update({name: value})

    return {
        "in the state": of_state(estimator={"x": Planted()}),
        "as a key": lambda tree: tree.update({Planted(): 1}),
        "numpy's numbers": of_state(estimator={"x": np.float64(1)}),
        "true for a count": of_state(step=True),
        "text for a tensor": parameter("heads.bias", "x"),
        "a tensor that expands": parameter("heads.bias", torch.zeros(1).expand(10**9)),
        "not a number": parameter("heads.bias", torch.full((2,), float("nan"))),
        "a name that steers": parameter("\x1b[2J", torch.zeros(1)),
        "a start that steers": lambda tree: tree.update(start="\x1b[2J"),
        "true for a version": lambda tree: tree.update(version=True),
        "version 2": lambda tree: tree.update(version=2),
        "an unknown key": lambda tree: tree.update(extra=1),
        "a configuration that is YAML": lambda tree: tree.update(config="!!python/object/apply:open [planted, w]"),
    }


@pytest.mark.parametrize("case", planted_checkpoints())
def test_a_run_does_not_go_on_from_a_planted_checkpoint(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = torch.load(FORMATS / "checkpoint_v1.pt", weights_only=True)
    planted_checkpoints()[case](tree)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(FORMATS / "config_v1.yaml", run / "config.resolved.yaml")
    shutil.copy(FORMATS / "metrics_v1.jsonl", run / "metrics.jsonl")
    torch.save(tree, run / "checkpoint.pt")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        assert main(["train", "--resume", str(run)]) == 2
    finally:
        torch.set_default_dtype(before)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"metasched: error: {run / 'checkpoint.pt'}: ") and line.isprintable()
    assert not list(tmp_path.rglob("planted"))


def test_parts_of_a_checkpoint_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    with zipfile.ZipFile("bad.pt", "w") as bad, zipfile.ZipFile(FORMATS / "checkpoint_v1.pt") as good:
        for name in good.namelist():
            bad.writestr(name, good.read(name))
        bad.writestr("../../planted", b"x")
    with contextlib.suppress(MetaschedError):  # torch need not mind
        read_checkpoint(Path("bad.pt"))
    assert not list(tmp_path.rglob("planted"))


def test_a_planted_data_set_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's CIFAR-10 is pickled; nothing is loaded but the very files that were published."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Planted()))
    config = tmp_path / "config.yaml"
    config.write_text(f"task: {{name: cifar10, root: '{tmp_path}'}}\n")
    with pytest.raises(MetaschedError, match=r"^task\.root: cannot read cifar10"):
        build_problem(load_experiment(config).problem)
    assert not (tmp_path / "planted").exists()


def test_a_planted_array_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planted = np.array([Planted()], dtype=object)
    np.savez(tmp_path / "cifar10_10k_2k.npz", x_train=planted, y_train=planted, x_test=planted, y_test=planted)
    config = tmp_path / "config.yaml"
    config.write_text(f"task: {{name: cifar10_npz, root: '{tmp_path}'}}\n")
    with pytest.raises(MetaschedError, match=r"^task\.root: cannot read .*npz"):
        build_problem(load_experiment(config).problem)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("place", ["run.folder", "schedule.start", "task.root"])
@pytest.mark.parametrize("text", ["a" * 300, "~nobody_of_that_name/x", "/dev/null/x", "a/" * 2000, "a/" * 500])
def test_a_place_that_cannot_be_is_one_line(
    place: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("tracking: {wandb: disabled}\nschedule: {start: nonsense}\n")
    data = ["--task.name=mnist"] if place == "task.root" else []
    assert main(["train", "config.yaml", f"--{place}={text}", *data]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metasched: error: ") and line.isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_no_device_without_numbers(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {device: meta}\n")
    with pytest.raises(MetaschedError, match=r"^run\.device: 'meta' cannot be used"):
        build_problem(load_experiment(tmp_path / "config.yaml").problem)


def test_a_run_folder_is_made_where_the_configuration_says_and_nowhere_else(tmp_path: Path) -> None:
    """``name`` is part of a path, and the only part that is not one by its meaning: it has no slash and no dot."""
    for name in ("../planted", "/planted", "..", ".", "a/b", "a.b", "a b", "", "a\\b", "a\0b", "A", "-a"):
        (tmp_path / "config.yaml").write_text(f"name: '{name}'\n")
        with pytest.raises(MetaschedError):
            load_experiment(tmp_path / "config.yaml")


def test_writing_replaces_a_link_and_not_what_it_names(tmp_path: Path) -> None:
    target, link = tmp_path / "precious", tmp_path / "schedule.json"
    target.write_text("mine")
    link.symlink_to(target)
    write_schedule(link, read_schedule(GOLDEN))
    assert target.read_text() == "mine" and not link.is_symlink()
    assert link.read_bytes() == GOLDEN.read_bytes()


def test_a_valid_schedule_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Units, sources, tasks and parameters are free text."""
    file = loads(GOLDEN.read_bytes(), "schedule.json")
    hostile = dataclasses.replace(
        file,
        method=dataclasses.replace(file.method, parameters={"levels": OWNED}),
        controls=tuple(dataclasses.replace(control, unit=OWNED) for control in file.controls),
        provenance=dataclasses.replace(
            file.provenance, citation=OWNED, tasks=(OWNED,), metric=Metric(name=OWNED, value=0.5, n=1)
        ),
    )
    path = tmp_path / "schedule.json"
    write_schedule(path, hostile)
    shown = []
    for arguments in (["show", str(path)], ["show", str(path), "--json"]):
        assert main(arguments) == 0
        shown.append(capsys.readouterr().out)
    assert all(line.isprintable() for text in shown for line in text.splitlines())
    assert shown[0].count("owned") == 2 + 4 + 1 + 1  # parameters and source, units, tasks, metric
    assert read_schedule(path) == hostile  # shown escaped, kept as it is


@pytest.mark.parametrize("terminal", [False, True])
def test_no_text_steers_the_console(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    console = open_console(stream)
    console.note(OWNED)
    console.table(OWNED, ["arm", OWNED], [[OWNED, 1.0]])
    console.close()
    assert "owned" in stream.getvalue()
    for text in ("\x1b]0;", "\x07", "\x1b[2J", "\x9b", "\r", "\u202e"):
        assert text not in stream.getvalue()


def test_errors_and_warnings_cannot_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"x{OWNED.replace('/', '')}.json"
    os.mkdir(name)
    assert main(["show", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable() and "owned" in line and "Is a directory" in line
    assert str(MetaschedError(OWNED, OWNED, OWNED)).isprintable()


def test_an_arm_of_any_name_can_be_drawn(tmp_path: Path) -> None:
    """Arms are named by their files; a dollar sign begins a formula in matplotlib."""
    arms = {"$\\frac{$": [0.1, 0.2], "$\\foo$": [0.2, 0.3], "a$b": [0.3, 0.4], "{": [0.5, 0.6]}
    plot_comparison(tmp_path / "comparison.png", {10: arms}, ["a$b"])
    assert (tmp_path / "comparison.png").stat().st_size > 1000


def test_a_playable_schedule_plays_finite_numbers() -> None:
    """Any two values in a range that a file may declare can be interpolated."""
    file = loads(GOLDEN.read_bytes(), "schedule.json")
    control = dataclasses.replace(file.controls[3], low=-8e307, high=8e307)
    curve = (-8e307, 8e307, -8e307, 8e307, -8e307)
    wild = dataclasses.replace(file, controls=(control,), values={control.name: (curve,) * 3})
    played = PlayedSchedule(wild)
    for progress in (torch.linspace(0, 1, 101), torch.tensor([5e-324, 1 - 2**-53])):
        assert bool(torch.isfinite(played(progress.double(), played.layers)[control.name]).all())
