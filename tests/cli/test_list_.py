"""``metasched list``, and names in ``show`` and ``export``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

import metasched
from metasched.cli import main
from metasched.exchange.shipped import list_schedules
from metasched.search.bits import BIT_SEARCHES


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--method", "inq"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {shipped.name} " in said for shipped in list_schedules("inq"))
    assert "ana_linear" not in said and "digits_inq " in said and "0.928 " in said  # the floor of digits_inq
    assert main(["list", "--method", "ste"]) == 0
    assert "learned, with" not in capsys.readouterr().out


def test_sources_are_short_in_the_list_and_whole_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--method", "ana"]) == 0
    said = capsys.readouterr().out
    rows = said[said.index("hand-coded; --json has the whole sources") :].splitlines()[1:]
    assert len(rows) > 10 and max(map(len, rows)) <= 120
    assert any(row.endswith(" ...") for row in rows)
    assert main(["list", "--method", "ana", "--json"]) == 0
    assert "arXiv 2203.11323" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error() -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "metasched", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as `| head` does
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schedules"] == [asdict(shipped) for shipped in list_schedules()]


def test_names_in_show_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "digits_inq"]) == 0
    assert "digits_inq: a learned schedule for inq" in capsys.readouterr().out
    assert main(["show", "ana_linear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["name"] == "ana_linear"
    assert main(["export", "digits_inq", "-o", str(tmp_path / "a.json")]) == 0
    assert metasched.read_schedule(tmp_path / "a.json") == metasched.read_schedule("digits_inq")
    assert main(["show", "digits_in"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean 'digits_inq'?" in line
    assert main(["list", "--method", "inqq"]) == 2


def test_searches_for_bits_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in BIT_SEARCHES)
    assert main(["list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["bit_searches"]] == [*BIT_SEARCHES]
