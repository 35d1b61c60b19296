"""Runs killed at random moments, by the script that does it 200 times: all go on, and end with the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_killed_runs_end_as_whole_ones(tmp_path: Path) -> None:
    out = tmp_path / "kill.json"
    command = [sys.executable, "scripts/reliability/kill.py", "--runs", "12", "--processes", "0", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    counts = json.loads(out.read_text())
    assert (done.returncode, counts["wrong"]) == (0, []), done.stderr
    assert {name: counts[name] for name in ("unreadable", "unresumable", "different")} == {
        "unreadable": 0,
        "unresumable": 0,
        "different": 0,
    }
    assert counts["runs"] == 12 and counts["kills"] >= 12 and len(counts["phases"]) >= 2
