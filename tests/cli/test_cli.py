from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from metasched.cli import main
from metasched.cli.commands import COMMANDS
from metasched.cli.signals import Terminated
from metasched.config.fields import fields
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.exchange.format import ControlEntry, LayerEntry, MethodEntry, Metric, Provenance, ScheduleFile, Spent
from metasched.exchange.schedule_file import dumps, write_schedule
from metasched.io.run_folder import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(f"name: tiny\nrun: {{folder: {tmp_path / 'runs'}}}\n")
    return path


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command line called in place of the modules that do the work."""
    importlib.import_module("metasched.commands.train_many")  # reads names of a module that is replaced
    calls: list[tuple[Any, ...]] = []

    def train(experiment: Experiment, folder: RunFolder, console: Any) -> dict[str, Any]:
        calls.append(("train", experiment, folder))
        console.note("working")
        return {"score": 0.5, "gap": float("nan"), "arms": ["a", "b"]}

    def check(experiment: Experiment, console: Any) -> dict[str, Any]:
        calls.append(("check", experiment))
        console.note("working")
        return {"ok": True}

    def run(
        experiment: Experiment, paths: list[Path], folder: RunFolder, console: Any, reuse: list[Path], arms: Any
    ) -> dict[str, Any]:
        calls.append(("compare", experiment, paths, folder, reuse, arms))
        return {"best": "learned"}

    monkeypatch.setitem(sys.modules, "metasched.commands.train", SimpleNamespace(train=train))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "metasched.commands.check", SimpleNamespace(check=check))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "metasched.commands.compare", SimpleNamespace(run=run))  # type: ignore[arg-type]
    return calls


@pytest.fixture
def schedule() -> ScheduleFile:
    return ScheduleFile(
        method=MethodEntry(name="ana", parameters={"noise": "uniform"}),
        controls=(
            ControlEntry(
                name="weight_noise",
                low=0.0,
                high=1.0,
                unit="quantum",
                direction="nonincreasing",
                end=0.0,
                dwell=0.0,
                granularity="layer",
                gradient="path",
            ),
        ),
        progress=(0.0, 0.5, 1.0),
        layers=tuple(
            LayerEntry(
                name=f"conv{i}",
                depth=float(i),
                kind="conv",
                quantizes="weight",
                fan_in=9,
                num_weights=90,
                bits=1.0,
            )
            for i in range(2)
        ),
        values={"weight_noise": ((0.5, 0.25, 0.0), (0.75, 0.5, 0.0))},
        interpolation="linear",
        provenance=Provenance(
            kind="learned",
            name="tiny",
            tasks=("digits",),
            outer_steps=40,
            metric=Metric(name="score", value=0.8765, n=16, interval=(0.87, 0.88)),
            spent=(Spent(by="tpe", inner_steps=600), Spent(by="es", inner_steps=1200)),
        ),
    )


@pytest.mark.parametrize("command", [[], *([c] for c in COMMANDS)])
def test_help_does_not_import_torch_and_without_a_command_nothing_that_takes_time(command: list[str]) -> None:
    code = (
        "import sys\nfrom metasched.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as error: assert error.code == 0\n"
        "heavy = {'torch', 'wandb', 'numpy', 'matplotlib', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "heavy |= {'pydantic'} & set(sys.modules) if len(sys.argv) == 2 else set()\n"
        "assert not heavy, heavy"
    )
    arguments = [sys.executable, "-c", code, *command, "--help"]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: metasched") and result.stderr == ""


def test_the_first_line_does_not_wait_for_torch(config: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from metasched.cli import main; main(sys.argv[1:])"
    result = subprocess.run([sys.executable, "-c", code, "train", config], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "tiny: joint on digits, 100 steps\n" and "import of torch halted" in result.stderr


def test_help_offers_every_field(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # no line is broken
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help-fields"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in fields():
        assert f"--{field.path} {field.type}" in text
        assert " ".join(field.description.split()) in text


def test_help_of_fields_may_be_of_one_section(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--help-fields", "meta"])
    named = re.findall(r"^  --([a-z_.]+)", capsys.readouterr().out, re.MULTILINE)
    assert named == [field.path for field in fields() if field.path.startswith("meta.")]
    assert main(["compare", "--help-fields", "mta"]) == 2
    assert "--help-fields: unknown name 'mta'; did you mean 'meta'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], *([c] for c in COMMANDS)], ids=lambda c: " ".join(c))
def test_help_fits_a_screen(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    text = lines[lines.index("") :]  # after the usage
    assert len(lines) <= 48 and max(map(len, text)) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.startswith("metasched ")


def test_train(config: Path, called: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--meta.steps", "7", str(config), "--optimizer.lr=1e-3"]) == 0
    (name, experiment, folder) = called[0]
    assert name == "train" and (experiment.meta.steps, experiment.optimizer.lr) == (7, 0.001)
    assert folder.path == config.parent / "runs" / "tiny-001"
    resolved = yaml.safe_load(folder.config.read_text())
    assert resolved["meta"]["steps"] == 7 and resolved["task"]["name"] == "digits"
    environment = json.loads(folder.environment.read_text())
    assert environment["torch"]
    assert environment["command"] == "metasched train --meta.steps 7 experiment.yaml --optimizer.lr=1e-3"  # no folders
    assert folder.done.exists()
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == f"tiny: joint on digits, 100 steps\nworking\nfolder: {folder.path}\nscore: 0.5\ngap: nan\n"


def test_a_run_repeats_from_its_folder(config: Path, called: list[Any]) -> None:
    assert main(["train", str(config), "--meta.lr", "0.5"]) == 0
    assert main(["train", str(config.parent / "runs/tiny-001/config.resolved.yaml")]) == 0
    assert called[0][1] == called[1][1] and called[0][1].meta.lr == 0.5


def test_json_result_is_all_of_stdout(config: Path, called: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = config.parent / "given"
    assert main(["train", str(config), "--json", "--folder", str(folder)]) == 0
    captured = capsys.readouterr()
    expected = {"folder": str(folder), "score": 0.5, "gap": "nan", "arms": ["a", "b"]}
    assert json.loads(captured.out) == expected and captured.err == "tiny: joint on digits, 100 steps\nworking\n"
    assert main(["check", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True}


def test_a_folder_is_used_once(config: Path, called: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(config), "--folder", str(config.parent / "given")]
    assert (main(arguments), main(arguments), len(called)) == (0, 2, 1)
    assert "already holds a run" in capsys.readouterr().err


def test_compare(config: Path, called: list[Any]) -> None:
    files = ["--schedule", "a.json", "b.json", "--schedule", "c.json", "--schedule.start", "ana_linear"]
    files += ["--arm", "slow", "ste", "optimizer.lr=0.1", "--arm", "b", "b.json"]
    assert main(["compare", str(config), *files, "--reuse", "runs/a", "runs/b"]) == 0
    (_, experiment, paths, folder, reuse, arms) = called[0]
    assert arms == [["slow", "ste", "optimizer.lr=0.1"], ["b", "b.json"]]
    assert reuse == [Path("runs/a"), Path("runs/b")]
    assert paths == ["a.json", "b.json", "c.json"] and experiment.schedule.start == "ana_linear"
    assert folder.done.exists()


def test_show(tmp_path: Path, schedule: ScheduleFile, capsys: pytest.CaptureFixture[str]) -> None:
    write_schedule(tmp_path / "s.json", schedule)
    assert main(["show", str(tmp_path / "s.json")]) == 0
    assert capsys.readouterr().out == (
        "tiny: a learned schedule for ana (noise=uniform)\n"
        "2 layers, 3 knots, interpolation linear\n"
        "learned in 40 outer steps on digits\n"
        "found in 600 inner steps by tpe + 1200 inner steps by es\n"
        "score: 0.8765 (n = 16, 95 % interval 0.87 to 0.88)\n"
        "weight_noise in [0, 1] (quantum), nonincreasing, ends at 0\n"
        "  layer                        u=0   u=0.5  u=1\n"
        "  conv0  ▆▅▅▅▅▄▄▄▄▃▃▃▃▂▂▂▂▂▁▁  0.5   0.25   0\n"
        "  conv1  ███▇▇▇▇▆▆▆▅▅▄▄▃▃▂▂▂▁  0.75  0.5    0\n"
    )
    assert main(["show", str(tmp_path / "s.json"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["layers"] == ["conv0", "conv1"] and summary["knots"] == 3 and len(summary["sha256"]) == 64
    assert summary["provenance"]["metric"]["interval"] == [0.87, 0.88]


def test_show_two(tmp_path: Path, schedule: ScheduleFile, capsys: pytest.CaptureFixture[str]) -> None:
    write_schedule(tmp_path / "s.json", schedule)
    figure = tmp_path / "f.svg"
    assert main(["show", str(tmp_path / "s.json"), "inq_linear", "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:4] == [
        "A  tiny: a learned schedule for ana (noise=uniform)",
        "B  inq_linear: a hand-coded schedule for inq (default parameters)",
        "their layers differ: B is shown as it is played on the layers of A",
        "only in A: weight_noise",
    ]
    assert figure.read_text().startswith("<svg") and out.endswith(f"figure: {figure}\n")
    assert main(["show", "inq_linear", "inq_cubic", "--json"]) == 0
    assert [s["provenance"]["name"] for s in json.loads(capsys.readouterr().out)["schedules"]] == [
        "inq_linear",
        "inq_cubic",
    ]
    assert main(["show", "inq_linear", "--figure", "f.png"]) == 2
    assert "--figure: f.png does not end in .svg" in capsys.readouterr().err


def test_export(tmp_path: Path, schedule: ScheduleFile, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.claim(tmp_path / "run")
    write_schedule(run.schedule, schedule)
    assert main(["export", str(run.path)]) == 0
    assert capsys.readouterr().out == dumps(schedule)
    assert main(["export", str(run.path), "-o", str(tmp_path / "out.json")]) == 0
    assert (tmp_path / "out.json").read_bytes() == run.schedule.read_bytes()
    assert main(["export", str(run.path), "-o", str(tmp_path / "nowhere" / "out.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


MISTAKES = [
    ([], "the following arguments are required: COMMAND"),
    (["trian", "x.yaml"], "invalid choice: 'trian'"),
    (["train"], "the following arguments are required: CONFIG"),
    (["train", "missing.yaml"], "missing.yaml: cannot be read: No such file or directory"),
    (["train", "CONFIG", "--meta.stps", "3"], "--meta.stps: unknown argument; did you mean --meta.steps?"),
    (["train", "--meta.stps", "3", "CONFIG"], "--meta.stps: unknown argument; did you mean --meta.steps?"),
    (["train", "CONFIG", "--meta.stps=3"], "--meta.stps: unknown argument; did you mean --meta.steps?"),
    (["train", "CONFIG", "--jsn"], "--jsn: unknown argument; did you mean --json?"),
    (["train", "CONFIG", "--fold", "x"], "--fold: unknown argument; did you mean --folder?"),
    (["train", "CONFIG", "other.yaml"], "other.yaml: unknown argument"),
    (["train", "CONFIG", "--meta.steps"], "argument --meta.steps: expected one argument"),
    (["train", "CONFIG", "--meta.steps", "-1"], "--meta.steps: must be at least 0, got -1"),
    (["train", "CONFIG", "--method.name", "ste"], "method.name: there is nothing to learn for ste"),
    (["train", "CONFIG", "--folder", "CONFIG"], "cannot be made a run folder"),
    (["train", "CONFIG", "--run.folder", "CONFIG"], "cannot be made a run folder"),
    (["train", "--resume", "."], ".: holds no run"),
    (["train", "--resume", ".", "--folder", "x"], "--folder: cannot be combined with --resume"),
    (["train", "CONFIG", "--allow", "seed"], "--allow: has no effect without --resume"),
    (["online", "CONFIG", "--resume", "."], "--resume: unknown argument"),
    (["show", "missing.json"], "missing.json: cannot be read"),
    (["show", "CONFIG"], "experiment.yaml: "),
    (["export", "."], ".: holds no schedule.json"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_2(
    config: Path, called: list[Any], capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main([str(config) if a == "CONFIG" else a for a in arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("metasched: error: ") and expected in line
    assert captured.out in ("", "tiny: ste on digits, 100 steps\n", "tiny: joint on digits, 100 steps\n")
    assert called == []


def test_several_mistakes_are_a_line_each(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(config), "--meta.steps=-1", "--task.batch=0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("metasched: error: --") for line in lines)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MetaschedError("task.root", "is missing", "set it"), 2, "metasched: error: task.root: is missing; set it\n"),
        (KeyboardInterrupt(), 130, "metasched: interrupted; go on with `metasched train --resume RUN`\n"),
        (Terminated(), 143, "metasched: terminated; go on with `metasched train --resume RUN`\n"),
        (OSError(28, "No space left", "x.png"), 2, "metasched: error: x.png: cannot be written (No space left)\n"),
    ],
)
def test_what_ends_a_run(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def train(*_: Any) -> dict[str, Any]:
        raise error

    monkeypatch.setitem(sys.modules, "metasched.commands.train", SimpleNamespace(train=train))  # type: ignore[arg-type]
    assert main(["train", str(config)]) == code
    assert capsys.readouterr().err == message.replace("RUN", str(config.parent / "runs/tiny-001"))
    assert not (config.parent / "runs/tiny-001/DONE").exists()


def test_warnings_are_one_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(*_: Any) -> dict[str, Any]:
        warnings.warn("a tracker failed", RuntimeWarning, stacklevel=1)
        return {}

    monkeypatch.setitem(sys.modules, "metasched.commands.check", SimpleNamespace(check=check))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["check", str(config)]) == 0
    assert capsys.readouterr().err == "metasched: warning: a tracker failed\n"


@pytest.mark.parametrize(
    ("script", "command"),
    [
        (["-m", "metasched"], ""),
        (["scripts/meta_train.py"], "train "),
        (["scripts/export_schedule.py"], "export "),
        (["scripts/compare_baselines.py"], "compare "),
    ],
)
def test_entry_points(script: list[str], command: str) -> None:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    run = [sys.executable, *script]
    shown = subprocess.run([*run, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.startswith(f"usage: metasched {command}")
    wrong = subprocess.run([*run, "--nonsense"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("metasched: error: ")
    assert len(wrong.stderr.splitlines()) == 1
