"""Arms that join an old result: the same seeds, what was there stays, and a resumed run computes nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from loading import loaded

from metasched.config.load import load_experiment
from metasched.evaluation.contenders import fresh_seeds
from metasched.evaluation.references import reference_arms
from metasched.runs.cells import cell_score

ROOT = Path(__file__).parents[2]
TINY = {
    "task": {"model": "mlp", "width": 3, "steps": 4, "batch": 16, "train": 64, "validation": 32, "test": 32},
    "method": {"name": "inq"},
    "compare": {"seeds": 3},
    "run": {"workers": 1},
}


def load(name: str) -> ModuleType:
    return loaded(ROOT / "scripts" / f"{name}.py")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    torch.set_default_dtype(torch.float32)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY))
    own = load_experiment(config)
    seeds = fresh_seeds(own.seed, own.compare.seeds)
    arm = {"name": "learned", "horizon": 8, "scores": [0.25, 0.5, 0.125], "inner_steps": 24}
    old = {"seeds": seeds, "learned": ["learned"], "arms": [arm], "command": "old", "versions": {}, "hardware": "it"}
    (tmp_path / "old.json").write_text(json.dumps(old))
    return tmp_path / "old.json", config, old


def test_floor_and_ceiling_join_from_the_same_seeds(files: tuple[Path, Path, dict[str, Any]]) -> None:
    path, config, old = files
    script = load("join_arms")
    assert script.main([str(path), str(config), "--compare.baselines=[inq_cubic]"]) == 0
    found = json.loads(path.read_text())
    arms = {arm["name"]: arm for arm in found["arms"]}
    assert list(arms) == ["learned", "ste", "lsq", "float", "inq_cubic"]
    assert arms["learned"]["scores"] == old["arms"][0]["scores"] and found["command"] == "old"
    experiment = load_experiment(config)
    for name, contender in reference_arms(experiment.problem):
        scores = [cell_score(contender.problem, {}, seed, 8, "test") for seed in old["seeds"]]
        assert arms[name]["scores"] == scores and arms[name]["horizon"] == 8
    assert found["joined"][0]["arms"] == ["ste", "lsq", "float", "inq_cubic"]
    assert "joined later, by `python scripts/join_arms.py" in load("results_tables").markdown("tiny", found)
    assert not path.with_suffix(".cells.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [("--seed=5", "seed: gives other seeds than the result's"), ("--task.steps=5", "task.steps: has 5 steps")],
)
def test_another_experiment_is_refused(
    files: tuple[Path, Path, dict[str, Any]], more: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, config, _ = files
    before = path.read_text()
    assert load("join_arms").main([str(path), str(config), more]) == 2
    assert message in capsys.readouterr().out and path.read_text() == before
