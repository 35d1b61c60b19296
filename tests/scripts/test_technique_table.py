"""The table of techniques: each arm with the scores and bytes of its comparison; a second call only reads."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from loading import loaded

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
name: tiny
task: {name: digits, model: mlp, width: 3, steps: 2, batch: 16, train: 32, validation: 16, test: 32}
method: {name: ste, scale: max, activation_levels: null}
compare: {seeds: 2, baselines: []}
run: {workers: 1}
tracking: {wandb: disabled}
"""
TABLE = """
levels: {8 bits: int8, ternary: ternary}
techniques:
  plain: {schedule: ste}
  frozen: {schedule: inq_linear, fields: [method.partition=random]}
experiments:
  small: {file: FILE}
  deep: {file: FILE, fields: [task.depth=1]}
"""


@pytest.fixture
def script() -> ModuleType:
    return loaded(ROOT / "scripts" / "technique_table.py")


@pytest.mark.usefixtures("blank_plots")
def test_table(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    (tmp_path / "table.yaml").write_text(TABLE.replace("FILE", str(tmp_path / "tiny.yaml")))
    call = [str(tmp_path / "table.yaml"), "-o", str(tmp_path / "out"), "--set", "small", "task.width=4"]
    script.main(call)
    found = json.loads((tmp_path / "out" / "table.json").read_text())
    assert {"torch", "cpu"} <= found["environment"].keys()
    keys = [(line["experiment"], line["technique"], line["levels"]) for line in found["lines"]]
    one = [("float", "32 bits"), ("plain", "8 bits"), ("plain", "ternary"), ("frozen", "8 bits"), ("frozen", "ternary")]
    assert keys == [(name, *rest) for name in ("small", "deep") for rest in one]
    arms = json.loads((tmp_path / "out" / "small" / "comparison.json").read_text())["arms"]
    scores = {arm["name"]: arm["scores"] for arm in arms}
    line = found["lines"][2]
    assert line["mean"] == pytest.approx(sum(scores["plain@ternary"]) / 2) and line["n"] == 2
    # 64-4-4-4-10: three hidden layers, the last layer in float
    weights, others = 4 * (64 + 4 + 4), 4 * (3 * 4 * 4 + 4 * 10 + 10)
    assert line["bytes"] == weights * 2 // 8 + 3 * 4 + others
    assert found["lines"][0]["bytes"] == 4 * weights + others
    shown = (tmp_path / "out" / "table.md").read_text()
    assert "| frozen | ternary |" in shown.partition("`deep`, n = 2:")[2]
    before = (tmp_path / "out" / "small" / "cells.jsonl").read_bytes()
    script.main([*call, "--only", "small"])
    assert (tmp_path / "out" / "small" / "cells.jsonl").read_bytes() == before
    capsys.readouterr()
    for wrong, said in ((["--only", "none"], "names no experiment"), ([], "none empty")):
        file = tmp_path / ("table.yaml" if wrong else "tiny.yaml")
        with pytest.raises(SystemExit):
            script.main([str(file), "-o", str(tmp_path / "x"), *wrong])
        assert said in capsys.readouterr().err
