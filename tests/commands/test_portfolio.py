"""``metasched portfolio`` and ``play``: from an arena on validation to an ordered list, and from that to a verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import metasched
from metasched.cli import main
from metasched.config.writing import dump_yaml
from metasched.exchange.extras import Membership
from metasched.exchange.portfolios import content_hash, read_portfolios
from metasched.exchange.schedule_file import read_schedule
from metasched.exchange.shipped import file_of
from metasched.runs import cells

pytestmark = [
    pytest.mark.usefixtures("blank_plots"),
    pytest.mark.filterwarnings("ignore:.*follow their depth alone"),
]

TASK = {"name": "digits", "model": "mlp", "width": 4, "depth": 1, "steps": 3, "batch": 8, "train": 40, "validation": 20,
        "test": 30}  # fmt: skip
EXPERIMENT: dict[str, Any] = {
    "name": "one",
    "task": TASK,
    "method": {"name": "ana"},
    "schedule": {"knots": 5, "directions": None},
    "compare": {"seeds": 2, "horizons": [1]},
    "arena": {"choice_runs": 2},
    "tracking": {"wandb": "disabled"},
    "run": {"workers": 1},
}


def yaml(path: Path, document: dict[str, Any]) -> str:
    path.write_text(dump_yaml(document))
    return str(path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an arena on validation, in ``arena``, and the portfolio built from it, which has a file."""
    folder = tmp_path_factory.mktemp("portfolio")
    learned = file_of("digits_ana")
    assert learned is not None
    shutil.copy(learned, folder / "mine.json")
    entries = [
        {"name": "plain"},
        {"name": "wide", "set": {"task.width": 5}},
        {"name": "held", "set": {"task.depth": 2}},
    ]
    arms = [{"kind": "constants"}, {"kind": "schedule", "of": str(folder / "mine.json")}]
    arena = {"part": "validation", "seeds": 2, "arms": arms}
    document = EXPERIMENT | {"tasks": {"entries": entries}, "arena": arena}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metasched.arena.page.plot_comparison", lambda *a, **k: None)
        assert main(["arena", "run", yaml(folder / "arena.yaml", document), "--folder", str(folder / "arena")]) == 0
    build = ["portfolio", "build", folder / "arena", "--out", folder / "p.json", "--without", "held"]
    assert main([str(word) for word in build]) == 0
    yield folder


def test_build_writes_entries_with_their_provenance(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (portfolio,) = read_portfolios(built / "p.json")
    assert portfolio.recipe == "ana, weights ternary, activations ternary"
    assert (portfolio.compared, portfolio.seeds, portfolio.horizons) == (5, 2, (1,))
    assert portfolio.tasks == ("plain", "wide")
    assert list(portfolio.sources) == ["arena"] and len(portfolio.sources["arena"]) == 64
    assert portfolio.curse[0].k == 1
    ranks = [entry.rank for entry in portfolio.entries]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] == portfolio.entries[0].own_rank
    assert main(["portfolio", "show", str(built / "p.json")]) == 0
    said = capsys.readouterr().out
    assert "of 5 schedules on 2 tasks, 2 seeds" in said and "luck of the choice" in said


def test_a_schedule_file_is_copied_beside_it_and_must_be_the_one_that_was_scored(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = built / "mine.json"
    scores = json.loads((built / "arena" / "scores.json").read_text())
    for line in scores["lines"]:
        line["scores"] = [float(line["arm"] == "mine")] * 2
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    build = ["portfolio", "build", str(tmp_path / "scores.json"), "--out", str(tmp_path / "My q.json")]
    assert main(build) == 0
    (portfolio,) = read_portfolios(tmp_path / "My q.json")
    assert [entry.name for entry in portfolio.entries] == ["mine"]
    copy, own = read_schedule(tmp_path / "My q_mine.json"), read_schedule(mine)
    assert copy.portfolio == Membership(name="My q", rank=1) and own.portfolio is None
    assert replace(copy, portfolio=None, version=3) == own
    capsys.readouterr()
    assert main(["show", str(tmp_path / "My q_mine.json")]) == 0
    assert "number 1 of the portfolio My q" in capsys.readouterr().out
    (schedule,) = metasched.portfolio("ana", "ternary", named=str(tmp_path / "My q.json"))
    assert isinstance(schedule, metasched.PlayedSchedule)
    again = json.loads((tmp_path / "scores.json").read_text())  # of the copy, which lies where its copy would be
    for line in again["lines"]:
        if line["arm"] == "mine":
            line["schedule"], line["hash"] = str(tmp_path / "My q_mine.json"), content_hash(tmp_path / "My q_mine.json")
    (tmp_path / "again.json").write_text(json.dumps(again))
    scored = (tmp_path / "My q_mine.json").read_bytes()
    for _ in range(2):
        assert main(["portfolio", "build", str(tmp_path / "again.json"), "--out", str(tmp_path / "My q.json")]) == 0
        assert (tmp_path / "My q_mine.json").read_bytes() == scored and read_portfolios(tmp_path / "My q.json")
    text = mine.read_text()
    try:
        mine.write_text(text + "\n")
        assert main(build) == 2
        assert "has changed since it was scored" in capsys.readouterr().err
    finally:
        mine.write_text(text)


def test_scores_of_the_test_part_build_nothing(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (built / "arena" / "scores.json").read_text().replace('"validation"', '"test"')
    (tmp_path / "scores.json").write_text(text)
    assert main(["portfolio", "build", str(tmp_path / "scores.json"), "--out", str(tmp_path / "q.json")]) == 2
    assert "scores of the test part" in capsys.readouterr().err and not (tmp_path / "q.json").exists()
    assert main(["portfolio", "build", str(tmp_path / "scores.json"), "--out", str(tmp_path / "no" / "q.json")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err


def test_show_says_what_the_package_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["portfolio", "show"]) == 0
    assert capsys.readouterr().out
    assert main(["portfolio", "show", "nothing"]) == 2
    assert "unknown name 'nothing'" in capsys.readouterr().err


def test_play_chooses_on_validation_and_reports_on_test_beside_floors_and_ceiling(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, int]] = []
    real = cells.hardened_score

    def recorded(problem: Any, state: Any, part: Any) -> float:
        seen.append((part, problem.seed))
        return real(problem, state, part)

    monkeypatch.setattr(cells, "hardened_score", recorded)
    config, folder = yaml(tmp_path / "one.yaml", EXPERIMENT), tmp_path / "run"
    names = ["ana_constant_075", "ana_constant_100"]
    assert main(["play", config, "--schedule", *names, "--folder", str(folder)]) == 0
    parts = [part for part, _ in seen]
    assert parts == ["validation"] * 4 + ["test"] * 8  # 2 schedules, 2 runs; chosen, ste, lsq, float on 2 seeds
    assert {s for p, s in seen if p == "test"}.isdisjoint({s for p, s in seen if p == "validation"})
    choice = json.loads((folder / "choice.json").read_text())
    assert choice["chosen"] == max(names, key=lambda name: choice["scores"][name]) and choice["inner_steps"] == 12
    arms = {arm["name"] for arm in json.loads((folder / "comparison.json").read_text())["arms"]}
    assert arms == {choice["chosen"], "ste", "lsq", "float"}
    assert "best of 2, which flatters its score there" in capsys.readouterr().out


def test_play_takes_the_first_of_a_portfolio(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, given = yaml(tmp_path / "one.yaml", EXPERIMENT), str(built / "p.json")
    assert main(["play", config, "--portfolio", given, "--folder", str(tmp_path / "run")]) == 0
    (portfolio,) = read_portfolios(given)
    assert f"chosen: {portfolio.entries[0].name}, the only one, so at no run" in capsys.readouterr().out
    for words, message in (
        (["--try", "0"], "--try: must be at least 1"),
        (["--schedule", "ana_statik"], "unknown name 'ana_statik'; did you mean 'ana_static'"),
        (["--portfolio", given, "--method.levels", "int4"], "there is no portfolio for ana, weights int4"),
    ):
        assert main(["play", config, *words, "--folder", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_tune_starts_warm_and_an_arena_plays_the_first(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="optional: tuning")
    given = str(built / "p.json")
    tune = {"search": "random", "inner_steps": 18, "runs": 1, "finalists": 2, "final_runs": 1, "warm_start": given}
    document = EXPERIMENT | {"schedule": {**EXPERIMENT["schedule"], "start": "ana_static"}, "tune": tune}
    assert main(["tune", yaml(tmp_path / "one.yaml", document), "--folder", str(tmp_path / "run")]) == 0
    (portfolio,) = read_portfolios(given)
    assert f"tries first, as they are: {portfolio.entries[0].name}" in capsys.readouterr().out
    arms = [
        {"kind": "ste"},
        {"kind": "portfolio", "of": given, "first": 1},
        {"kind": "search", "of": "random", "runs": 4},
    ]
    arena = {"seeds": 2, "searches": 1, "arms": arms, "rate_runs": 0}
    document |= {"tasks": {"entries": [{"name": "a"}, {"name": "b", "set": {"task.width": 6}}]}, "arena": arena}
    monkeypatch.setattr("metasched.arena.page.plot_comparison", lambda *a, **k: None)
    path = yaml(tmp_path / "arena.yaml", document)
    assert main(["arena", "run", path, "--folder", str(tmp_path / "arena")]) == 0
    assert "portfolio_1" in capsys.readouterr().out
