"""The examples of tasks of one's own: from YAML and from Python, killed and resumed, on several workers: same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import metasched
from metasched.io.json_lines import read_json_lines
from metasched.io.run_folder import RunFolder
from metasched.io.strict_yaml import read_mapping

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NAMES = ["cnn", pytest.param("transformer", marks=pytest.mark.slow)]
SECTIONS: dict[str, dict[str, Any]] = {
    "task": {"steps": 3},
    "meta": {"steps": 2, "runs": 2, "tune_lr": 0, "confirm_runs": 0},
    "schedule": {"knots": 4, "directions": 4},
    "compare": {"seeds": 2, "tune_floors": 0, "baselines": ["widths_narrowing"]},
    "tracking": {"wandb": "disabled"},
}
OVERRIDES = [f"--{s}.{f}={str(v).replace(chr(39), '')}" for s, fields in SECTIONS.items() for f, v in fields.items()]


def start(command: Sequence[str], **kwargs: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=EXAMPLES, env=environment, **pipes, **kwargs)


def run(*command: str, code: int = 0) -> str:
    process = start(command)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    return out + err


def train(name: str, folder: Path, *more: str, python: Sequence[str] = ()) -> None:
    words = ["-m", "metasched", "train", f"{name}.yaml", "--import", name, "--folder", str(folder)]
    run(*python, *words, *OVERRIDES, *(more or ("--run.workers=1",)))


def found(folder: Path) -> Mapping[str, Any]:
    """What has the same bits wherever it ran."""
    run = RunFolder(folder)
    return {"values": read_mapping(run.schedule)["values"], "arms": read_mapping(run.comparison)["arms"]}


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def yaml_run(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(name) / "run"
    train(name, folder)
    return folder


def test_floor_and_ceiling_are_in_the_comparison(yaml_run: Path) -> None:
    assert {arm["name"] for arm in found(yaml_run)["arms"]} == {"learned", "ste", "lsq", "float", "widths_narrowing"}


@pytest.mark.slow
def test_python_gives_the_same_bits_and_a_finished_run_is_not_done_again(
    name: str, yaml_run: Path, tmp_path: Path
) -> None:
    sections = {n: {**s, "workers": 1} if n == "run" else s for n, s in SECTIONS.items() if n != "task"}
    text = f"""
import json, sys, {name}, metasched
for _ in range(2):
    given = json.loads(sys.argv[1])
    sections = {{n: {name}.LEARNING.get(n, {{}}) | given[n] for n in given}}
    found = metasched.learn({name}.make_task, {name}.RECIPE, steps=3, optimizer={name}.OPTIMIZER,
                            folder={str(tmp_path / "run")!r}, **sections)
print([arm.name for arm in found.comparison.arms], found.report({str(tmp_path / "report.html")!r}))
"""
    import json

    said = run("-c", text, json.dumps(sections))
    assert said.count("outer step 2/2") == 1 and (tmp_path / "report.html").exists()
    assert found(tmp_path / "run") == found(yaml_run)
    ours, theirs = (read_mapping(RunFolder(folder).task) for folder in (tmp_path / "run", yaml_run))
    assert ours == theirs


def test_workers_give_the_same_bits(name: str, yaml_run: Path, tmp_path: Path) -> None:
    train(name, tmp_path / "run", "--run.workers=2")
    assert found(tmp_path / "run") == found(yaml_run)


def test_a_killed_run_goes_on_with_the_same_bits_and_another_task_is_refused(
    name: str, yaml_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = ["-m", "metasched", "train", f"{name}.yaml", "--import", name, "--folder", str(folder), "--run.workers=1"]
    process = start([*words, *OVERRIDES])
    metrics = RunFolder(folder).metrics
    while not (metrics.exists() and any("outer/step" in line for line in read_json_lines(metrics))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "--import" in run("-m", "metasched", "train", "--resume", str(folder), code=2)
    changed = tmp_path / name
    changed.with_suffix(".py").write_text(
        (EXAMPLES / f"{name}.py").read_text().replace("label_smoothing=0.1", "label_smoothing=0.2")
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from metasched.cli import main; sys.exit(main())"
    said = run("-c", code, "train", "--resume", str(folder), "--import", name, code=2)
    assert said.startswith("resumes ") and "has another fingerprint" in said and len(said.splitlines()) == 2
    run("-m", "metasched", "train", "--resume", str(folder), "--import", name)
    assert found(folder) == found(yaml_run)


@pytest.mark.slow
def test_torchrun_gives_the_same_bits(name: str, yaml_run: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = ["-m", "metasched", "train", f"{name}.yaml", "--import", name, "--folder", str(tmp_path / "run")]
    run(*torchrun, *words, *OVERRIDES)
    assert found(tmp_path / "run") == found(yaml_run)


def test_the_public_interface() -> None:
    assert issubclass(metasched.DataTask, metasched.Task)
