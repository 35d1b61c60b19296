"""A method, a task, a model and an optimizer from outside the package go wherever those of the package go."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metasched.cli import main
from metasched.config.fields import fields
from metasched.config.load import load_experiment
from metasched.config.writing import config_hash
from metasched.core.errors import MetaschedError
from metasched.exchange.schedule_file import read_schedule
from metasched.models import MODELS
from metasched.runs.cells import former_key
from metasched.tasks import TASKS
from metasched.training.problem import build_problem

MODULES = ("alpha_blending", "stripes", "residual", "lion")
IMPORTS = [word for module in MODULES for word in ("--import", module)]
TINY = {
    "name": "outside",
    "task": {
        **{"name": "stripes", "model": "residual", "width": 3, "depth": 2},
        **{"steps": 5, "batch": 16, "train": 64, "validation": 32, "test": 32},
    },
    "optimizer": {"name": "lion", "lr": 0.02, "clip_norm": 5.0, "parameters": {"sharpness": 5.0}},
    "method": {"name": "alpha_blending", "stretch": 0.9, "activation_levels": None, "scale": "max"},
    "schedule": {"start": "alpha_linear", "knots": 4, "hidden": 4, "directions": None},
    "meta": {"steps": 3, "runs": 2, "objective": "relaxed"},
    "tune": {"inner_steps": 60, "runs": 1, "finalists": 2, "final_runs": 1, "search": "random"},
    "online": {"every": 4, "window": 1, "held_out": 4},
    "compare": {"seeds": 2, "baselines": ["alpha_linear"]},
    "tracking": {"wandb": "disabled"},
    "run": {"workers": 1},
}
Results = tuple[bytes, ...]

pytestmark = pytest.mark.usefixtures("outside")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def cli(*arguments: object) -> int:
    return main([*map(str, arguments), *IMPORTS])


@pytest.fixture(scope="module")
def trained(config: Path, outside: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    torch.set_default_dtype(torch.float32)
    assert cli("train", config, "--folder", folder) == 0
    return folder


def results(folder: Path) -> Results:
    return tuple((folder / name).read_bytes() for name in ("schedule.json", "comparison.json"))


def test_without_the_imports_their_names_are_unknown(config: Path) -> None:
    command = [sys.executable, "-m", "metasched", "check", str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for setting, name in {"task.name": "stripes", "task.model": "residual", "optimizer.name": "lion"}.items():
        assert f"{config}: {setting}: unknown name '{name}'" in done.stderr


def test_they_are_trained_and_what_is_exported_says_so(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "schedule.json"
    assert main(["export", str(trained), "-o", str(file)]) == 0  # which needs no code of theirs
    learned = read_schedule(file)
    assert (learned.method.name, learned.method.parameters["stretch"]) == ("alpha_blending", 0.9)
    assert [layer.name for layer in learned.layers] == ["1", "3.linear", "4.linear"]
    assert "noise" not in learned.method.parameters  # of other methods
    assert learned.provenance.tasks == ("stripes",)
    verdict = json.loads((trained / "comparison.json").read_text())
    assert {"learned", "alpha_linear", "ste", "lsq", "float"} <= {arm["name"] for arm in verdict["arms"]}


def test_the_code_of_task_and_model_is_in_the_fingerprint(config: Path, trained: Path) -> None:
    experiment = load_experiment(config)

    def found() -> tuple[str, str, str | None]:
        problem = build_problem(experiment.problem)
        key = former_key(experiment.problem, {}, [1], 5, "test")
        return problem.fingerprint, config_hash(experiment, problem.fingerprint), key

    first = found()
    for table, name in ((TASKS, "stripes"), (MODELS, "residual")):
        row: Any = table[name]  # type: ignore[index]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(table, name, replace(row, builder=lambda *given, row=row: row.builder(*given)))  # type: ignore[arg-type]
            assert not {*found()[:2]} & {*first}
    assert found() == first and first[2] is None


def test_a_task_or_model_that_fails_is_one_line(config: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load_experiment(config)

    def fail(*given: Any) -> Any:
        raise KeyError("gone")

    for table, name, said in (
        (MODELS, "residual", r"task\.name: stripes raised KeyError|task\.build: raised KeyError: 'gone'; mend it"),
        (TASKS, "stripes", "task.name: stripes raised KeyError: 'gone'; mend it"),
        (TASKS, "stripes", "task.name: stripes returned a int, not a Task"),
    ):
        builder = (lambda config: 3) if "int" in said else fail
        with monkeypatch.context() as patch, pytest.raises(MetaschedError, match=said):
            patch.setitem(table, name, replace(table[name], builder=builder))  # type: ignore[index, type-var]
            build_problem(experiment.problem)


@pytest.mark.parametrize("command", ["check", "sensitivity"])
def test_it_is_checked(command: str, config: Path, trained: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(command, config) == 0


def test_it_is_compared(config: Path, trained: Path, tmp_path: Path) -> None:
    learned = trained / "schedule.json"
    assert cli("compare", config, "--schedule", learned, "--folder", tmp_path / "run", "--reuse", trained) == 0


def test_it_is_tuned(config: Path, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="optional: tuning")
    assert cli("tune", config, "--folder", tmp_path / "run") == 0


def test_it_learns_online(config: Path, trained: Path, tmp_path: Path) -> None:
    assert cli("online", config, "--folder", tmp_path / "run") == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb-workspaces
def test_it_has_a_dashboard(config: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces", reason="optional: dashboards")
    saved: list[Any] = []
    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", lambda self: saved.append(self))
    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.url", "nowhere", raising=False)
    assert cli("dashboard", config, "--entity", "me") == 0
    patterns = [getattr(panel, "metric_regex", "") or "" for section in saved[0].sections for panel in section.panels]
    assert any("blend" in pattern for pattern in patterns)


def test_a_stopped_run_goes_on_with_the_same_bits(
    config: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    rule = sys.modules["lion"].SmoothLion
    update: Callable[..., Any] = rule.update
    calls = 0

    def stopping(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 25:  # outer step 2 of 3; one has 10 inner steps
            raise KeyboardInterrupt
        return update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(rule, "update", stopping)
        assert cli("train", config, "--folder", folder) == 130
    assert calls == 25 and not (folder / "schedule.json").exists()
    assert cli("train", "--resume", folder) == 0
    assert results(folder) == results(trained)


@pytest.mark.slow
def test_workers_import_the_modules_and_find_the_same_bits(config: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert cli("train", config, "--folder", folder, "--run.workers=2") == 0
    learned, again = (read_schedule(place / "schedule.json") for place in (trained, folder))
    assert again.controls == learned.controls and again.values == learned.values


def test_they_are_choices_in_the_help_and_in_messages(config: Path, trained: Path) -> None:
    shown = {f.path: f for f in fields()}
    assert shown["task.name"].type.endswith("|stripes") and "stripes: horizontal," in shown["task.name"].description
    assert shown["task.model"].type.endswith("|residual") and shown["optimizer.name"].type.endswith("|lion")
    for override, expected in {
        "--task.name=stripe": "unknown name 'stripe'; did you mean 'stripes'?",
        "--task.root=a": "has no effect, because task.name is stripes; leave it out; it is for mnist",
        "--optimizer.momentum=0.5": "has no effect, because optimizer.name is lion",
    }.items():
        with pytest.raises(MetaschedError) as caught:
            load_experiment(config, [override])
        assert expected in str(caught.value)
    with pytest.raises(MetaschedError, match=r"task\.depth: residual needs at least 2 layers, got 1"):
        build_problem(load_experiment(config, ["--task.depth=1"]).problem)
