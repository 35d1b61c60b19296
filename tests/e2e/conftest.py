"""A tiny experiment, the command line in this process, and one run that many tests look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from metasched.cli import main

TINY = {
    "name": "tiny",
    "task": {"model": "mlp", "width": 3, "steps": 6, "batch": 16, "train": 64, "validation": 32, "test": 32},
    "method": {"name": "inq"},
    "schedule": {"start": "inq_linear", "knots": 4, "hidden": 4, "directions": None},
    "meta": {"steps": 2, "runs": 2, "confirm_runs": 0},
    "compare": {"seeds": 2, "baselines": ["inq_linear", "inq_cubic"], "horizons": [1, 2]},
    "tracking": {"wandb": "disabled"},
    "run": {"workers": 1},
}
Cli = Callable[..., int]


def run(*arguments: str | Path) -> int:
    """Exit code of ``metasched`` with these arguments, in torch's own default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return main([str(a) for a in arguments])
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def cli() -> Cli:
    return run


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="session")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run("train", config, "--folder", folder) == 0
    return folder
