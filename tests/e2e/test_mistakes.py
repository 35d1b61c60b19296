"""Bad input through the command line: exit code 2, one line that says where, and no folder left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., int]
BAD_SCHEDULES = {  # text -> what the line says
    "empty.json": ("", ""),
    "half.json": ('{"format": "metasched.schedule", ', ""),
    "list.json": ("[1, 2]", ""),
    "other.json": ('{"format": "another"}', "format"),
    "twice.json": ('{"format": "metasched.schedule", "format": "metasched.schedule"}', "format"),
    "nan.json": ('{"format": NaN}', ""),
    "binary.json": ("\x00\xff", ""),
}
MISTAKES = [  # command, arguments, what the line holds
    ("train", ["--meta.stps=1"], "--meta.stps: unknown argument; did you mean --meta.steps?"),
    ("train", ["--meta.steps=many"], "--meta.steps: "),
    ("train", ["--meta.lr=-1"], "--meta.lr: must be greater than 0, got -1"),
    ("train", ["--compare.seeds=1"], "--compare.seeds: must be at least 2"),
    ("train", ["--method.levels=quaternary"], "method.levels: "),
    ("train", ["--task.name=mnist"], "task.root: is missing"),
    ("train", ["--task.name=mnist", "--task.root=TMP"], "task.root: cannot read mnist"),
    ("train", ["--task.name=cifar10_npz", "--task.root=TMP/nowhere"], "task.root: there is no folder"),
    ("train", ["--task.train=100000"], "task.train: asks for 100000 examples"),
    ("train", ["--run.device=nonsense"], "run.device: 'nonsense' cannot be used"),
    ("train", ["--schedule.start=inq_liner"], "schedule.start: 'inq_liner' is neither"),
    ("train", ["--schedule.start=TMP/missing.json"], "missing.json: cannot be read: No such file"),
    (
        "train",
        ["--schedule.start=SCHEDULE", "--method.name=ana"],
        "schedule.json: method.name: is for method 'inq', not 'ana'",
    ),
    ("train", ["--schedule.learn=[freeze_rate]"], "schedule.learn[0]: inq has no control 'freeze_rate'"),
    ("train", ["--meta.estimator=sweep", "--meta.memory=1KiB"], "meta.memory: is less than the "),
    (
        "train",
        ["--meta.estimator=unroll", "--meta.memory=2GiB"],
        "meta.memory: has no effect, because meta.estimator is unroll",
    ),
    ("train", ["--meta.memory=2 GB"], "--meta.memory: must be a number of bytes, or a size in KiB, MiB or GiB"),
    ("train", ["--task.model=resnet20", "--task.depth=9"], "task.depth: has no effect, because task.model is resnet20"),
    ("train", ["--task.model=convnet", "--task.depth=2"], "task.depth: convnet needs at least 3 layers, got 2"),
    ("train", ["--compare.baselines=[inq_liner]"], "compare.baselines[0]: unknown name 'inq_liner'; did you mean"),
    ("train", ["--compare.baselines=[widths_wide_first+ana_linear]"], "both say what the forward pass sees"),
    ("train", ["--method.name=joint", "--method.of=ana+nope"], "--method.of: 'nope' is no method that can be a part"),
    ("train", ["--meta.confirm_runs=1"], "--meta.confirm_runs: is 1, and one run has no interval"),
    ("train", ["--meta.tune_lr=4"], "--meta.tune_lr: 4 inner runs are too few for 5 learning rates"),
    ("train", ["--meta.estimator=weighted", "--meta.runs=1"], "meta.runs: weighted weighs estimates by their spread"),
    ("compare", ["--compare.tune_floors=as_learned"], "compare.tune_floors: as_learned has no number to go by"),
    ("compare", ["--arm", "a"], "--arm: is 'a'; give NAME SCHEDULE"),
    ("compare", ["--arm", "ste", "inq_linear"], "ste: is the name of two arms"),
    ("compare", ["--schedule", "SCHEDULE", "SCHEDULE"], "is the name of two arms"),
    ("compare", ["--schedule", "TMP/missing.json"], "missing.json: cannot be read: No such file"),
    *(("compare", ["--schedule", f"TMP/{name}"], f"{name}: {where}") for name, (_, where) in BAD_SCHEDULES.items()),
    *(("train", [f"--schedule.start=TMP/{name}"], f"{name}: {where}") for name, (_, where) in BAD_SCHEDULES.items()),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, (text, _) in BAD_SCHEDULES.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    return tmp_path


@pytest.mark.parametrize(("command", "arguments", "expected"), MISTAKES, ids=[" ".join(m[1]) for m in MISTAKES])
def test_mistakes(
    cli: Cli,
    config: Path,
    trained: Path,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: list[str],
    expected: str,
) -> None:
    before = sorted(place.rglob("*"))
    schedule = str(trained / "schedule.json")
    given = [a.replace("TMP", str(place)).replace("SCHEDULE", schedule) for a in arguments]
    capsys.readouterr()
    assert cli(command, config, f"--run.folder={place / 'runs'}", *given) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("metasched: error: ") and expected in line and "Traceback" not in captured.out
    assert sorted(place.rglob("*")) == before


def test_an_unknown_key_of_the_file_is_named_with_a_suggestion(
    cli: Cli, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(config.read_text().replace("knots:", "knot:"))
    assert cli("train", file) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file}: schedule.knot: unknown field; did you mean knots?" in line


def test_a_folder_that_holds_a_run_stays_as_it_is(
    cli: Cli, config: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    capsys.readouterr()
    for command in ("train", "compare"):
        assert cli(command, config, "--folder", trained) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{trained}: already holds a run" in line
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before


def test_a_given_folder_with_something_else_in_it_is_refused(
    cli: Cli, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("notes.txt", "more.txt"):
        (tmp_path / name).write_text("mine")
    assert cli("train", config, "--folder", tmp_path) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{tmp_path}: is not empty (it has 'more.txt' and 1 more); give a new" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["more.txt", "notes.txt"]


def test_a_mistake_leaves_nothing_of_a_given_folder(cli: Cli, config: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    new = tmp_path / "a" / "b"
    assert cli("train", config, "--folder", new, "--schedule.start=nonsense") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
