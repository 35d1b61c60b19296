"""``metasched calibrate``: of an experiment, and of a function of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from metasched.cli import main
from metasched.core import imports

EXPERIMENT = {
    "name": "calibrated",
    "task": {
        "name": "digits",
        "model": "convnet",
        "width": 4,
        "depth": 3,
        "pretrained": 20,
        "steps": 5,
        "batch": 32,
        "train": 128,
        "validation": 64,
        "test": 32,
    },
    "method": {
        "name": "ste",
        "levels": "balanced3",
        "scale": "max",
        "granularity": "channel",
        "activation_levels": "uint4",
    },
    "quantize": {"last": True},
}
OWN = """
import torch
from torch import nn
import metasched

def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return model, metasched.Recipe("ste", weights="int3", activations=None), [torch.randn(8, 4)]

def nothing():
    return 1
"""


def written(folder: Path, **task: object) -> str:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**EXPERIMENT, "task": {**EXPERIMENT["task"], **task}}))  # pyright: ignore
    return str(path)


@pytest.mark.slow
def test_an_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_default_dtype(torch.float32)
    out, deployed = tmp_path / "out", tmp_path / "deployed"
    command = ["calibrate", written(tmp_path), "--batches", "2", "--option", "steps=10", "--json"]
    assert main([*command, "-o", str(out), "--deploy", str(deployed)]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert len(result["units"]) >= 3 and all(u["error"] <= u["nearest"] for u in result["units"])
    assert {"score", "score_nearest", "score_float"} <= result.keys()
    assert said.err.count("calibrate: ") >= 3 and "left" in said.err
    assert json.loads((out / "account.json").read_text())["units"] == result["units"]
    state = torch.load(out / "weights.pt", weights_only=True)
    first = next(w for name, w in state.items() if name.endswith("weight") and w.dim() == 4)
    assert all(len(channel.unique()) <= 7 for channel in first)
    assert (deployed / "network.json").exists()
    assert main([*command, "-o", str(out)]) == 2  # the folder is there
    assert "already exists" in capsys.readouterr().err


def test_a_function_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_default_dtype(torch.float32)
    (tmp_path / "mine_calibrated.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(imports, "_ALLOWED", set())
    command = ["calibrate", "mine_calibrated:network", "--import", "mine_calibrated", "--method", "nearest"]
    assert main(command) == 0
    assert "1/1 units  0: error" in capsys.readouterr().out
    for words, message in {
        ("mine_calibrated:nothing",): "returned a int that is not a network, a recipe and batches",
        ("mine_calibrated:network", "--method", "nearest", "--task.steps=3"): "--task.steps: has no effect",
        ("mine_calibrated:network", "--batches", "3"): "--batches: has no effect on batches of one",
        ("mine_calibrated:network", "--method", "neerest"): "did you mean 'nearest'?",
        ("mine_calibrated:network", "--option", "steps"): "--option: got 'steps'; give NAME=VALUE once",
        ("mine_calibrated:network", "--option", "steps=x"): "calibrate: steps: Input should be a valid integer",
        ("mine_calibrated:network", "--by", "7"): "calibrate: by: unknown name '7'",
    }.items():
        assert main(["calibrate", *words, "--import", "mine_calibrated"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line, line


def test_a_task_without_a_pretrained_start_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", written(tmp_path, pretrained=0)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "task.pretrained: starts from random weights, and calibration takes a trained network" in line


def test_an_experiment_with_another_procedure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_default_dtype(torch.float32)
    config = written(tmp_path, model="mlp", depth=1, pretrained=3)
    out = tmp_path / "out"
    assert main(["calibrate", config, "--method", "bit_split", "--batches", "1", "--json", "-o", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [unit["layers"] for unit in result["units"]] == [["linear1"], ["linear2"]]
    assert sorted(path.name for path in out.iterdir()) == ["account.json", "weights.pt"]


def test_product_stores_the_network_and_is_not_deployed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_default_dtype(torch.float32)
    command = ["calibrate", written(tmp_path, model="mlp", depth=1, pretrained=3), "--method", "product"]
    command += ["--batches", "1", "--option", "steps=5", "--option", "codes=4", "--json"]
    out, deployed = tmp_path / "out", tmp_path / "deployed"
    assert main([*command, "-o", str(out), "--deploy", str(deployed)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--deploy: makes integers of levels, and product gives layers without levels" in line and not out.exists()
    assert main([*command, "-o", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    state = torch.load(out / "weights.pt", weights_only=True)
    for unit in result["units"]:
        blocks = state[f"{unit['unit']}.weight"].reshape(-1, 4)
        codes = int(unit["details"]["codes"])
        assert len(blocks.unique(dim=0)) <= codes <= 4
        bits = {1: 0, 2: 1, 4: 2}[codes]
        assert unit["details"]["bytes"] == -(-len(blocks) * bits // 8) + codes * 4 * 2  # 4 numbers of 16 bits
