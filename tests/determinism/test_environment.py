"""Each command that leaves a run folder records what its bits depend on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from metasched.cli import main

NEEDED = {
    *("python", "torch", "numpy", "higher", "metasched", "git"),
    *("system", "machine", "cpu", "cpu_count", "cpu_capability", "blas", "onednn", "device", "cuda", "cudnn"),
    *("threads", "inner_threads", "default_dtype", "matmul_precision", "deterministic"),
}
SETTINGS = {
    "task": {"model": "mlp", "width": 2, "steps": 4, "batch": 8, "train": 32, "validation": 16, "test": 16},
    "method": {"name": "ana"},
    "schedule": {"start": "ana_linear", "knots": 3, "hidden": 2},
    "meta": {"steps": 1, "runs": 1},
    "compare": {"seeds": 2, "baselines": ["ana_linear"]},
    "online": {"every": 3, "window": 1, "held_out": 4},
    "tracking": {"wandb": "disabled"},
    "run": {"workers": 1},
}


@pytest.mark.parametrize("command", ["train", "compare", "online", "sensitivity"])
def test_the_environment_and_the_seed_are_in_the_run_folder(command: str, tmp_path: Path) -> None:
    config, folder = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(SETTINGS))
    more = ["--runs", "2"] if command == "sensitivity" else []
    assert main([command, str(config), "--folder", str(folder), "--seed", "7", *more]) == 0
    found = json.loads((folder / "environment.json").read_text())
    assert found.keys() >= NEEDED
    assert found["inner_threads"] == 1 and found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["default_dtype"] == "float64"  # of this suite
    assert yaml.safe_load((folder / "config.resolved.yaml").read_text())["seed"] == 7
