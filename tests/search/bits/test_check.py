"""The check of searches against the exhaustive optimum runs, and holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loading import loaded

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_random_search_is_near_the_optimum_and_channels_are_no_worse_than_layers(tmp_path: Path) -> None:
    path = ROOT / "scripts" / "reliability" / "bit_allocation.py"
    script = loaded(path)
    files = ["--json", str(tmp_path / "a.json"), "--table", str(tmp_path / "a.md")]
    assert script.main(["--networks", "1", "--searches", "1", "--steps", "200", *files]) == 0
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["held"] == dict.fromkeys(told["held"], True) and told["results"][0]["feasible"] > 50
    assert "| greedy | " in (tmp_path / "a.md").read_text()
