"""The benchmark of ``auto`` runs, and what the documentation says of it is what its result file holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "benchmarks" / "auto_estimator.py"
RESULT = ROOT / "experiments" / "results" / "auto_estimator.json"


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    out = tmp_path / "auto.json"
    quick = ["--steps", "1", "--contrast", "1", "--seeds", "2", "--part", "validation"]
    subprocess.run([sys.executable, SCRIPT, *quick, "--json", out], check=True, capture_output=True, timeout=600)
    result = json.loads(out.read_text())
    assert result["auto"]["schedule_is_finite"] and result["auto"]["nonfinite"] == 0
    assert result["auto"]["norm"]["high"] < 1e3 < 1e9 < result["sweep"]["norm"]["median"]
    assert result["learned_minus_start"]["n"] == 2


def test_the_documented_figures_are_those_of_the_result_file() -> None:
    result = json.loads(RESULT.read_text("utf-8"))
    text = " ".join((ROOT / "docs" / "hypergradients.md").read_text("utf-8").split())
    d, auto, sweep = result["learned_minus_start"], result["auto"], result["sweep"]
    assert f"{d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}], n = {d['n']}" in text
    assert f"{result['scores']['learned']['mean']:.4f} against {result['scores']['start']['mean']:.4f}" in text
    assert f"median {sweep['norm']['median']:.0e}" in text
    assert (result["part"], d["n"], auto["outer_steps"], auto["error"]) == ("test", 16, 60, None)
    assert auto["schedule_is_finite"] and auto["nonfinite"] == auto["skipped"] == 0
