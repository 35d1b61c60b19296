"""Where schedules matter: one small ramp learned, searched and compared; a second call only reads."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from loading import loaded

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
name: tiny
task: {name: digits, model: mlp, width: 3, steps: 3, batch: 16, train: 32, validation: 16, test: 32}
method: {name: ste, scale: max, activation_levels: null}
run: {workers: 1}
tracking: {wandb: disabled}
"""
TABLE = """
learn: [schedule.start=floor, schedule.directions=3, schedule.knots=3, meta.estimator=es, meta.steps=2, meta.runs=1,
  meta.confirm_runs=2, compare.seeds=3]
tune: [tune.search=random, tune.space=directions, tune.runs=1, tune.finalists=1, tune.final_runs=1]
ramps:
  of the blend:
    {file: FILE, fields: [method.name=blend], none: [ste], constants: [], published: [blend_late, blend_linear]}
"""


@pytest.fixture
def script() -> ModuleType:
    name = "where_schedules_matter"
    return loaded(ROOT / "scripts" / f"{name}.py")


@pytest.mark.slow
def test_table(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    (tmp_path / "table.yaml").write_text(TABLE.replace("FILE", str(tmp_path / "tiny.yaml")))
    out = tmp_path / "out"
    call = [str(tmp_path / "table.yaml"), "-o", str(out)]
    script.main(call)
    (found,) = json.loads((out / "table.json").read_text())["lines"]
    arms = json.loads((out / "of_the_blend" / "compared" / "comparison.json").read_text())["arms"]
    mean = {arm["name"]: sum(arm["scores"]) / 3 for arm in arms}
    assert found["n"] == 3 and found["learned"] == pytest.approx(mean["learned"])
    assert found["inner_steps"] == 2 * 2 * 3  # two outer steps of a pair of three steps
    tuned = json.loads((out / "of_the_blend" / "searched" / "schedule.json").read_text())["provenance"]["spent"]
    assert tuned == [{"by": "random", "inner_steps": 12}]
    published = max(mean["blend_late"], mean["blend_linear"])
    assert found["others"]["published"]["mean"] == pytest.approx(published) and found["others"]["constants"] is None
    assert found["differences"]["none"]["mean"] == pytest.approx(mean["learned"] - mean["ste"])
    assert (out / "figure.png").stat().st_size > 1000
    before = {path: path.read_bytes() for path in out.rglob("*.json*")}
    script.main(call)
    assert {path: path.read_bytes() for path in out.rglob("*.json*")} == before
    assert "| of the blend |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script.main([*call, "--only", "x"])
    assert "names no ramp" in capsys.readouterr().err


def test_p_values_are_corrected_over_the_lines_that_have_one(script: ModuleType) -> None:
    lines = [{"differences": {"none": {"p": p}} if p else {}} for p in (0.01, None, 0.03)]
    assert script.corrected(lines, "none") == [0.02, None, 0.03]
