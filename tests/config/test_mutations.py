"""A share of what ``scripts/reliability/mutate_input.py`` tries: damaged experiments, in here and by the command."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from loading import loaded

SCRIPT = Path(__file__).parents[2] / "scripts" / "reliability" / "mutate_input.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded(SCRIPT)


def test_damaged_experiments_are_read_or_refused_in_lines(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = script.try_configs(500, tmp_path, through_cli=5)
    assert result["failures"] == 0, result["first_failures"]
    assert result["accepted"] + result["refused"] == 500 and 10 < result["accepted"] < 150
    assert result["command_line"]["count"] == 5 and result["command_line"]["failures"] == 0, result["command_line"]
    assert {path.name for path in tmp_path.iterdir()} == {"experiment.yaml", "refused.yaml"}
