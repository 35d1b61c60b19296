"""``meta.estimator: auto`` from the command line: what it says, what is logged, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from metasched.io.json_lines import read_json_lines
from metasched.tracking.metrics import unknown_metrics

Cli = Callable[..., int]
AUTO = ["--meta.estimator=auto", "--compare.horizons=[1]", "--compare.baselines=[]"]


def test_it_says_what_it_chose_and_why(
    cli: Cli, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", config, *AUTO, "--folder", tmp_path / "run") == 0
    shown = capsys.readouterr().out
    (first,) = re.findall(r"^outer step 1: estimator (\w+): .*$", shown, re.MULTILINE)
    (summary,) = re.findall(r"^estimator: (.*)$", shown, re.MULTILINE)
    assert f"{first} in " in summary and "last measured: growth of the adjoint 10^" in summary
    rows = [row for row in read_json_lines(tmp_path / "run" / "metrics.jsonl") if "outer/step" in row]
    assert unknown_metrics(name for row in rows for name in row) == []
    assert rows[0]["estimator/mode"] == ["exact", "mixed", "es"].index(first)
    assert rows[0]["outer/inner_steps"] == 3 * 2 * 6  # a run and a pair for each seed


@pytest.mark.parametrize("estimator", ["mixed", "auto"])
def test_one_run_is_refused_before_anything_is_written(
    cli: Cli, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], estimator: str
) -> None:
    folder = f"--run.folder={tmp_path / 'runs'}"
    assert cli("train", config, folder, f"--meta.estimator={estimator}", "--meta.runs=1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metasched: error: meta.runs: ") and "set it to 4 or more" in line
    assert list(tmp_path.iterdir()) == []
