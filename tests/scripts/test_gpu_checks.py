"""The checks for a GPU without one: what the script says, that checks do not stop each other, what is kept of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from loading import loaded

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "scripts" / "benchmarks"


def script(python: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / "gpu_checks.sh"), str(out)]
    return subprocess.run(command, env={**os.environ, "PYTHON": python}, capture_output=True, text=True)


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = script("false", tmp_path / "out.json")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no CUDA device" in done.stderr
    assert not (tmp_path / "out.json").exists() and not done.stdout


def test_a_check_that_crashes_does_not_stop_the_others(tmp_path: Path) -> None:
    """With an interpreter that has a GPU, crashes in one check, runs out of time in another, and notes both."""
    python, out = tmp_path / "python", tmp_path / "out.json"
    python.write_text(
        f"""#!/bin/bash
case "$*" in
    -c*) exit 0 ;;
    *--ended*) exec {sys.executable} "$@" ;;
    *kernels*) exit 139 ;;
    *stacked*) exit 124 ;;
    *vgg8*) exit 1 ;;
esac
""",
        "utf-8",
    )
    python.chmod(0o755)
    out.write_text("of another day", "utf-8")
    done = script(str(python), out)
    assert done.returncode == 1
    found = {name: part["why"] for name, part in json.loads(out.read_text())["checks"].items()}
    assert found == {"kernels": "its process ended with 139", "stacked": "its time was up"}
    for name in ("kernels", "devices", "stacked", "hypergradients", "vgg8", "tests"):
        assert f"== {name}, at most" in done.stdout


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = loaded(BENCHMARKS / "gpu_checks.py")
    monkeypatch.syspath_prepend(BENCHMARKS)
    return module


def test_what_a_check_found_before_it_failed_is_kept(
    checks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(device: str, save: Any) -> None:
        save({"first": 1})
        raise ValueError("second")

    def missing(device: str, save: Any) -> str:
        return "triton is not installed here"

    work = SimpleNamespace(CHECKS={"kernels": missing, "vgg8": failing, "stacked": lambda device, save: save({"a": 2})})
    monkeypatch.setitem(sys.modules, "gpu_work", work)
    out = tmp_path / "out.json"
    status = {
        name: checks.main([name, "--json", str(out), "--device", "cpu"]) for name in ("vgg8", "kernels", "stacked")
    }
    assert status == {"vgg8": 1, "kernels": 0, "stacked": 0}
    result = json.loads(out.read_text())
    assert result["device"] and torch.__version__.startswith(result["environment"]["torch"])
    found = result["checks"]
    assert found["vgg8"]["first"] == 1 and found["vgg8"]["state"] == "failed"
    assert found["vgg8"]["why"].startswith("ValueError: second (test_gpu_checks.py:")
    assert (found["kernels"]["state"], found["kernels"]["why"]) == ("left out", "triton is not installed here")
    assert found["stacked"]["state"] == "done" and found["stacked"]["a"] == 2
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kernels", "devices", "stacked", "hypergradients", "vgg8", "tests"])
def test_each_check_runs_on_the_cpu(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(BENCHMARKS / "gpu_checks.py"), name, "--json", str(out), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["checks"][name]["state"] == "done"
