"""Learners whose searches are arms: Welch's interval by its formula, and a learner that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from loading import loaded
from scipy.stats import t

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script() -> ModuleType:
    name = "learners_table"
    return loaded(ROOT / "scripts" / f"{name}.py")


def test_searches_are_arms_with_a_number(script: ModuleType) -> None:
    means = {"es_1": 0.5, "es_2": 0.6, "tpe_10": 0.7, "tpe_20": 0.9, "alone_1": 1.0, "lsq": 0.4}
    assert script.searches(means) == {"es": [0.5, 0.6], "tpe": [0.7, 0.9]}


def test_interval_is_welch(script: ModuleType) -> None:
    found = {"a": [0.50, 0.54, 0.58], "b": [0.40, 0.50]}
    row = script.markdown(found, "a").splitlines()[-1]
    # Means 0.54 and 0.45; squared standard errors 0.0016 / 3 and 0.005 / 2; degrees of freedom of Welch, Satterthwaite.
    u, v = 0.0016 / 3, 0.005 / 2
    half = t.ppf(0.975, (u + v) ** 2 / (u**2 / 2 + v**2 / 1)) * (u + v) ** 0.5
    assert row == f"| b | 2 | 0.4500 | 0.0707 | +0.0900 [{0.09 - half:+.4f}, {0.09 + half:+.4f}] |"


def test_kept_results_have_the_learners(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for name, searches in (("text", 3), ("fashion", 3)):
        script.main([str(ROOT / f"experiments/results/{name}_learners.json"), "--first", "network"])
        assert f"| family | {searches} |" in capsys.readouterr().out


def test_unknown_learner(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((ROOT / "experiments/results/text_learners.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps(result))
    with pytest.raises(SystemExit) as ended:
        script.main([str(tmp_path / "r.json"), "--first", "tpe"])
    assert ended.value.code == 2
    assert "has no two searches of tpe; use one of network, family" in " ".join(capsys.readouterr().err.split())
