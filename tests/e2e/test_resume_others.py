"""``compare`` and ``tune`` that were stopped go on, with the same outcome, and do no inner run twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metasched.exchange.format import Spent
from metasched.exchange.schedule_file import read_schedule
from metasched.io.json_lines import read_json_lines
from metasched.runs import cells

pytestmark = pytest.mark.usefixtures("blank_plots")

Cli = Callable[..., int]


class Counted:
    """hardened_score that counts its calls, and is interrupted at one of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.calls, self.stop, self.score = 0, stop, cells.hardened_score

    def __call__(self, *arguments: Any) -> float:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        return self.score(*arguments)


def counted(monkeypatch: pytest.MonkeyPatch, call: Callable[[], int], stop: int | None = None) -> tuple[int, int]:
    """Exit code, and how many networks were scored."""
    with monkeypatch.context() as patch:
        counter = Counted(stop)
        patch.setattr(cells, "hardened_score", counter)
        return call(), counter.calls


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_json_lines(folder / "metrics.jsonl") if "artifact" not in row]


def test_compare(cli: Cli, config: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = tmp_path / "mine.json"
    shutil.copy(trained / "schedule.json", learned)
    ask = ["compare", config, "--schedule", learned, "--folder"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert counted(monkeypatch, lambda: cli(*ask, whole)) == (0, 24)  # 6 arms, 2 seeds, 2 horizons
    assert counted(monkeypatch, lambda: cli(*ask, parts), stop=6) == (130, 6)
    learned.unlink()  # the run keeps what it needs
    assert counted(monkeypatch, lambda: cli("compare", "--resume", parts)) == (0, 24 - 5)
    assert (parts / "comparison.json").read_bytes() == (whole / "comparison.json").read_bytes()
    assert rows(parts) == rows(whole)
    assert (parts / "schedules" / "000" / "mine.json").read_bytes() == (trained / "schedule.json").read_bytes()


def test_tuned_floors(cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 arms, 5 rates and 1 run of each on validation; then 5 arms, 2 seeds and 2 horizons on test."""
    ask = ["compare", config, "--compare.tune_floors=6", "--folder"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert counted(monkeypatch, lambda: cli(*ask, whole)) == (0, 15 + 20)
    assert counted(monkeypatch, lambda: cli(*ask, parts), stop=9) == (130, 9)
    assert counted(monkeypatch, lambda: cli("compare", "--resume", parts), stop=10) == (130, 10)
    assert counted(monkeypatch, lambda: cli("compare", "--resume", parts)) == (0, 15 + 20 - 8 - 9)
    assert (parts / "comparison.json").read_bytes() == (whole / "comparison.json").read_bytes()
    assert rows(parts) == rows(whole)
    arms = {a["name"]: a for a in json.loads((whole / "comparison.json").read_text())["arms"]}
    assert [name for name, arm in arms.items() if "tuned" in arm] == ["ste", "lsq", "float"]
    assert all(arms[name]["tuned"]["inner_steps"] == 5 * 6 for name in ("ste", "lsq", "float"))
    assert "Learning rates of floors and ceiling" in (whole / "report.html").read_text()


def test_an_arm_that_joins_later_is_all_that_is_run(
    cli: Cli, config: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, first, more, whole = (tmp_path / name for name in ("mine.json", "first", "more", "whole"))
    shutil.copy(trained / "schedule.json", learned)
    assert counted(monkeypatch, lambda: cli("compare", config, "--folder", first)) == (0, 20)
    ask = ["compare", config, "--schedule", learned, "--folder"]
    assert counted(monkeypatch, lambda: cli(*ask, more, "--reuse", first)) == (0, 4)  # 2 seeds, 2 horizons
    assert counted(monkeypatch, lambda: cli(*ask, whole)) == (0, 24)
    assert (more / "comparison.json").read_bytes() == (whole / "comparison.json").read_bytes()
    again = tmp_path / "again"  # the folder holds what it took over
    assert counted(monkeypatch, lambda: cli(*ask, again, "--reuse", more)) == (0, 0)


@pytest.mark.filterwarnings("default:.*its bits may differ")  # it is what is asked for here
def test_runs_from_another_machine_are_reused_with_a_warning(
    cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli("compare", config, "--folder", first) == 0
    facts = json.loads((first / "environment.json").read_text())
    (first / "environment.json").write_text(json.dumps(facts | {"cpu": "another", "torch": "1.0"}))
    assert counted(monkeypatch, lambda: cli("compare", config, "--folder", second, "--reuse", first)) == (0, 0)
    assert "warning: " in (said := capsys.readouterr().err)
    assert "first: ran with another torch, cpu: its bits may differ" in said


def test_a_folder_without_scores_is_not_reused(cli: Cli, config: Path, tmp_path: Path, capsys: Any) -> None:
    assert cli("compare", config, "--folder", tmp_path / "run", "--reuse", tmp_path / "none") == 2
    assert "--reuse: " in (said := capsys.readouterr().err) and "holds no cells.jsonl" in said
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "cells.jsonl").touch()
    assert cli("compare", config, "--folder", tmp_path / "run", "--reuse", tmp_path / "none") == 2
    assert "--reuse: " in (said := capsys.readouterr().err) and "holds no environment.json" in said
    assert not (tmp_path / "run").exists()


def test_compare_keeps_to_its_schedules(
    cli: Cli, config: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ask = ["compare", config, "--schedule", trained / "schedule.json", "--folder", tmp_path / "run"]
    assert counted(monkeypatch, lambda: cli(*ask), stop=1) == (130, 1)
    assert f"go on with `metasched compare --resume {tmp_path / 'run'}`" in capsys.readouterr().err
    assert cli("compare", "--resume", tmp_path / "run", "--schedule", trained / "schedule.json") == 2
    assert "--schedule: cannot be combined with --resume" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "schedules")  # as if it was killed before it kept them
    assert cli("compare", "--resume", tmp_path / "run") == 2
    assert "give them again" in capsys.readouterr().err
    assert cli("compare", "--resume", tmp_path / "run", "--schedule", trained / "schedule.json") == 0


def test_a_run_of_another_command_is_not_resumed(cli: Cli, config: Path, tmp_path: Path, monkeypatch: Any) -> None:
    assert counted(monkeypatch, lambda: cli("compare", config, "--folder", tmp_path / "run"), stop=1) == (130, 1)
    assert cli("train", "--resume", tmp_path / "run") == 2


@pytest.mark.parametrize("search", ["tpe", "cmaes"])
def test_tune(search: str, cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna" if search == "tpe" else "cma", reason="optional: tuning")
    budget = {"inner_steps": 240, "runs": 2, "finalists": 2, "final_runs": 3, "search": search}
    ask = ["tune", config, *(f"--tune.{name}={value}" for name, value in budget.items()), "--folder"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert counted(monkeypatch, lambda: cli(*ask, whole)) == (
        0,
        40 + 24,
    )  # of the search, and of 6 arms, 2 seeds, 2 horizons
    assert counted(monkeypatch, lambda: cli(*ask, parts), stop=21) == (130, 21)
    assert counted(monkeypatch, lambda: cli("tune", "--resume", parts)) == (0, 40 + 24 - 20)
    assert read_schedule(whole / "schedule.json").provenance.spent == (Spent(by=search, inner_steps=240),)
    assert (parts / "schedule.json").read_bytes() == (whole / "schedule.json").read_bytes()
    assert rows(parts) == rows(whole)


def test_tune_by_population(cli: Cli, config: Path, tmp_path: Path) -> None:
    budget = {"search": "pbt", "inner_steps": 120, "finalists": 1, "final_runs": 2, "population": 5, "interval": 2}
    few = ["--compare.baselines=[]", "--compare.horizons=[1]"]
    ask = ["tune", config, *(f"--tune.{name}={value}" for name, value in budget.items()), *few, "--folder"]
    assert cli(*ask, tmp_path / "a") == 0  # that workers change nothing: estimators/test_es.py, of the same segments
    scores = [row["tune/score"] for row in rows(tmp_path / "a") if "tune/score" in row]
    assert len(scores) == (120 // 6 - 2) // 5
