"""Different methods on the same seeds: the scores of `metasched compare`, paired, in the form of a result."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from metasched.evaluation.cells import cell_score, played
from metasched.evaluation.compare import fresh_seeds
from metasched.loading import load_experiment
from metasched.schedules.table import hand_coded

ROOT = Path(__file__).parents[2]
TINY = {
    "task": {"model": "mlp", "width": 3, "steps": 4, "batch": 16, "train": 64, "validation": 32, "test": 32},
    "method": {"name": "gxnor"},
    "compare": {"seeds": 3},
    "run": {"workers": 1},
}
ARMS = [
    *["--arm", "ste", "ste", "method.name=ste", "optimizer.lr=0.02"],
    *["--arm", "gxnor", "gxnor_cosine"],
    *["--arm", "annealed", "metropolis_geometric", "method.name=metropolis", "method.cooling=adaptive"],
]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("compare_methods")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    torch.set_default_dtype(torch.float32)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def test_arms_of_different_methods_are_paired_and_kept_as_a_result(
    script: ModuleType, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"
    arguments = [str(config), *ARMS, "--against", "ste", "--output", str(output), "--compare.seeds=2"]
    arguments += ["--task.root=somewhere"]
    assert script.main(arguments) == 0
    result = json.loads(output.read_text())
    arms = {arm["name"]: arm for arm in result["arms"]}
    assert list(arms) == ["ste", "gxnor", "annealed"] and result["learned"] == ["ste"] and len(result["seeds"]) == 2
    experiment = load_experiment(config, ["--compare.seeds=2", "--task.root=somewhere"])
    assert result["seeds"] == fresh_seeds(experiment)
    controls = played(experiment, hand_coded("gxnor")["gxnor_cosine"], 4)
    expected = [cell_score(experiment, controls, seed, 4, "test") for seed in result["seeds"]]
    assert arms["gxnor"]["scores"] == expected
    assert result["command"].endswith(" --compare.seeds=2 --task.root=DATA")
    difference = arms["gxnor"]["differences"]["ste"]
    assert difference["n"] == 2 and difference["mean"] == pytest.approx(arms["ste"]["mean"] - arms["gxnor"]["mean"])
    assert "ste - this" in load("results_tables").markdown("tiny", result)
    capsys.readouterr()
    first = output.read_bytes()
    assert script.main(arguments) == 0 and output.read_bytes() == first  # from what was kept
    assert len((tmp_path / "result.cells.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arm", "other", "gxnor_cosine", "task.steps=5"], "--arm other: has other data, steps or seeds"),
        (["--arm", "gxnor", "gxnor_linear"], "--against: 'ste' of ste, gxnor, annealed, gxnor"),
        (["--arm", "best", "best"], "--arm best: best is no schedule"),
        (["--arm", "lonely"], "--arm: is 'lonely'; give NAME SCHEDULE"),
        (["--arm", "x", "gxnor_cosin"], "schedule.start: 'gxnor_cosin' is neither a hand-coded schedule"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(
    script: ModuleType,
    config: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(config), *ARMS, *more, "--against", "ste", "--output", str(tmp_path / "result.json")]
    assert script.main(arguments) == 2
    assert message in capsys.readouterr().out
    assert not (tmp_path / "result.json").exists()
