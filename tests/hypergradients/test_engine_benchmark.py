"""The benchmark of the engines runs, and writes what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "hypergradient.py"


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    out = tmp_path / "engines.json"
    subprocess.run([sys.executable, SCRIPT, "--quick", "--json", out], check=True, capture_output=True, timeout=300)
    result = json.loads(out.read_text())
    assert {"command", "environment", "cpu", "seconds", "workloads", "left_out"} <= set(result)
    (distances,) = result["disagreement"].values()
    assert {name for name, distance in distances.items() if distance != 0} <= {"higher"}
    rows = {row["engine"]: row for row in result["rows"]}
    assert set(rows) == {"plain", *distances} and len(rows) == len(result["rows"]) == 8
    for row in rows.values():
        assert (row["workload"], row["optimizer"], row["steps"], row["n"]) == ("convnet", "adam", 10, 1)
        assert row["seconds"]["low"] == row["seconds"]["median"] == row["seconds"]["high"] > 0
    assert 2 * rows["sweep"]["bytes"]["median"] < rows["unroll"]["bytes"]["median"]
