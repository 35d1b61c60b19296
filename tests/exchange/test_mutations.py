"""A share of what ``scripts/reliability/mutate_input.py`` tries: damaged schedule files, random ones there and back."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import ModuleType

import pytest
from loading import loaded

from metasched.exchange.schedule_file import loads

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "reliability" / "mutate_input.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded(SCRIPT)


def test_damaged_files_are_read_or_refused_in_a_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = script.try_files(2000)
    assert result["failures"] == 0, result["first_failures"]
    assert result["accepted"] + result["refused"] == 2000 and 20 < result["accepted"] < 400
    assert list(tmp_path.iterdir()) == []


def test_damaged_policies_are_read_or_refused_in_a_line(script: ModuleType, tmp_path: Path) -> None:
    result = script.try_policies(500, tmp_path)
    assert result["failures"] == 0, result["first_failures"]
    assert result["accepted"] + result["refused"] == 500 and 10 < result["accepted"] < 250


def test_random_schedules_come_back_in_every_bit(script: ModuleType) -> None:
    assert script.try_round_trips(1000) == {"count": 1000, "exact": 1000, "failures": 0}


def test_random_schedules_are_of_many_kinds(script: ModuleType) -> None:
    files = [script.random_schedule(random.Random(i)) for i in range(200)]
    assert {len(file.controls) for file in files} == {0, 1, 2, 3}
    assert {control.direction for file in files for control in file.controls} == {
        "free",
        "nonincreasing",
        "nondecreasing",
    }
    values = [v for file in files for curves in file.values.values() for curve in curves for v in curve]
    assert any(0 < abs(v) < 1e-200 for v in values) and any(abs(v) > 1e200 for v in values)


def test_what_the_script_looks_for_is_counted(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that lets another exception, or an unprintable line, through is found out."""

    def careless(data: bytes, path: str) -> object:
        return loads(json.dumps(json.loads(data)), path)

    monkeypatch.setattr(script, "loads", careless)
    result = script.try_files(200)
    assert result["failures"] > 50
    assert any("JSONDecodeError" in why for _, why in result["first_failures"])


def test_the_documented_figures_are_those_of_the_result_file() -> None:
    result = json.loads((ROOT / "experiments" / "results" / "reliability_input.json").read_text("utf-8"))
    text = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    for part, what in (("files", "schedules"), ("configs", "experiments"), ("policies", "policy files")):
        r = result[part]
        counts = f"| {r['count']:,} {what} | {r['accepted']:,} | {r['refused']:,} | {r['failures']} |"
        row = f"{counts} {r['worst_cpu_ms']} ms |"
        assert row in text, row
    command = result["configs"]["command_line"]
    assert f"| {command['count']} of these" in text and f"| {command['worst_ms']} ms, with" in text
    assert command["failures"] == 0 and result["round_trips"] == {"count": 10_000, "exact": 10_000, "failures": 0}


def test_the_command_reports_and_fails_only_if_something_did(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--files", "20", "--configs", "20", "--policies", "20", "--round-trips", "5", "--commands", "0"]
    assert script.main([*few, "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == json.loads(capsys.readouterr().out)
    assert (result["files"]["count"], result["configs"]["count"], result["round_trips"]["exact"]) == (20, 20, 5)
    monkeypatch.setattr(script, "dumps", lambda file: "{}")
    assert script.main(few) == 1
