"""The arena as a user runs it: cells that resume and join, parts and seeds that do not mix, tasks that break."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from metasched.arena import running
from metasched.arena.arms import task_seeds
from metasched.arena.scores import Scores, dumps, join, read_scores, write_scores
from metasched.cli import main
from metasched.config.load import experiment_of
from metasched.config.writing import dump_yaml
from metasched.core.errors import MetaschedError
from metasched.runs import cells
from metasched.runs.store import read_store

pytest.importorskip("optuna", reason="optional: tuning")
pytestmark = pytest.mark.filterwarnings("ignore:.*follow their depth alone")

LEARNED = {"kind": "schedule", "of": "digits_ana"}
DOCUMENT: dict[str, Any] = {
    "name": "trial",
    "task": {"name": "digits", "model": "mlp", "width": 4, "depth": 1, "steps": 3, "batch": 8, "train": 40,
             "validation": 20, "test": 30},
    "method": {"name": "ana"},
    "schedule": {"knots": 3, "directions": None},
    "tune": {"runs": 1, "finalists": 1, "final_runs": 1},
    "tasks": {"entries": [
        {"name": "drawn", "draw": {"task.depth": [1, 2], "optimizer.lr": {"from": 0.01, "to": 0.1}}},
        {"name": "plain", "set": {"task.width": 5}},
    ]},
    "arena": {"seeds": 2, "horizons": [1, 2], "rate_runs": 1, "choice_runs": 2, "searches": 2, "arms": [
        {"kind": "ste"}, {"kind": "lsq"}, {"kind": "constants"}, {"kind": "best_constant"},
        {"kind": "search", "of": "random", "runs": 2}, LEARNED,
    ]},
    "run": {"workers": 1},
}  # fmt: skip


def arena(**changes: Any) -> dict[str, Any]:
    return DOCUMENT | {"arena": DOCUMENT["arena"] | changes}


def play(folder: Path, document: dict[str, Any] = DOCUMENT, *more: object) -> int:
    """``metasched arena run`` of a document in a folder, without the figure; the exit code."""
    path = folder.parent / "arena.yaml"
    path.write_text(dump_yaml(document))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metasched.arena.page.plot_comparison", lambda *a, **k: None)
        return main(["arena", "run", str(path), "--folder", str(folder), *map(str, more)])


@contextmanager
def watched() -> Iterator[list[tuple[str, int]]]:
    """(part, seed) of every run that is trained within."""
    seen: list[tuple[str, int]] = []
    real = cells.hardened_score

    def recorded(problem: Any, state: Any, part: Any) -> float:
        seen.append((part, problem.seed))
        return real(problem, state, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "hardened_score", recorded)
        yield seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, int]]]:
    """The folder of a whole arena, and what it has trained."""
    folder = tmp_path_factory.mktemp("arena") / "whole"
    with watched() as asked:
        assert play(folder) == 0
    return folder, asked


def test_it_reads_the_test_part_for_final_scores_alone_and_never_shares_a_seed(
    whole: tuple[Path, list[tuple[str, int]]],
) -> None:
    folder, asked = whole
    scores = read_scores(folder)
    final = sorted(seed for line in scores.lines for seed in scores.tasks[line.task].seeds)
    assert sorted(seed for part, seed in asked if part == "test") == final
    fresh = {seed for part, seed in asked if part == "validation"}
    assert fresh and fresh.isdisjoint(final)
    of_tasks = [info.seeds for info in scores.tasks.values()]
    assert len({seed for own in of_tasks for seed in own}) == 2 * len(of_tasks)
    streams = [
        task_seeds(0, task, part, 3) for task in ("a", "b") for part in ("test", "validation", "rates", "choice")
    ]
    assert len({seed for own in streams for seed in own}) == 3 * 8


def test_it_shows_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert play(tmp_path / "one", arena(arms=[{"kind": "ste"}])) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"^arms on \S+ 1/1  in \d+ s$", said, re.MULTILINE)) == said.count("\ntask ") > 0


def test_a_page_and_three_levels_follow(whole: tuple[Path, list[tuple[str, int]]]) -> None:
    folder, _ = whole
    page = (folder / "report.md").read_text()
    assert "2 tasks of 2 families" in page and "| random_2 |" in page and "## Score at choice, and after" in page
    assert "Broken" not in page
    levels = [json.loads((folder / f"{name}.json").read_text()) for name in ("scores", "tasks", "tables")]
    assert len(levels[1]) == 2 * 2 and [table["horizon"] for table in levels[2]] == [1, 2]
    assert read_scores(folder / "scores.json") == read_sorted(folder)


def read_sorted(folder: Path) -> Scores:
    """The lines of a folder in the order of ``scores.json``."""
    scores = read_scores(folder)
    tasks = {name: scores.tasks[name] for name in sorted(scores.tasks)}
    return Scores(tasks, tuple(sorted(scores.lines, key=lambda line: line.place)))


def test_one_that_was_stopped_goes_on_to_the_same_scores_without_doing_a_run_twice(
    whole: tuple[Path, list[tuple[str, int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real, stop = [0], cells.hardened_score, 31

    def counted(*arguments: Any) -> float:
        calls[0] += 1
        if calls[0] == stop:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(cells, "hardened_score", counted)
    assert play(tmp_path / "parts") == 130 and calls[0] == stop
    assert play(tmp_path / "parts") == 0
    folder, asked = whole
    assert calls[0] in (len(asked) + 1, len(asked) + 2)  # the run that was stopped, and perhaps the one with it
    for name in ("scores.json", "report.md", "tables.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (folder / name).read_bytes()


def test_an_arm_that_joins_later_gives_what_an_arena_with_all_arms_gives(
    whole: tuple[Path, list[tuple[str, int]]], tmp_path: Path
) -> None:
    folder, _ = whole
    base, kept = arena(arms=DOCUMENT["arena"]["arms"][:-1]), folder / "scores.json"
    with watched() as asked:
        assert play(tmp_path / "base", base, "--cells", kept) == 0  # all of it is there already
        assert asked == []
        assert play(tmp_path / "more", arena(arms=[LEARNED])) == 0
        assert len(asked) == 2 * 2 * 2
        report = ["arena", "report", tmp_path / "base", tmp_path / "more" / "scores.json", "-o", tmp_path / "joined"]
        assert main([str(word) for word in report]) == 0
        for name in ("tasks.json", "tables.json"):
            assert json.loads((tmp_path / "joined" / name).read_text()) == json.loads((folder / name).read_text())
        asked.clear()  # and in the same folder only the new arm is trained
        assert play(tmp_path / "base") == 0
        assert len(asked) == 2 * 2 * 2 and {part for part, _ in asked} == {"test"}
    assert (tmp_path / "base" / "scores.json").read_bytes() == kept.read_bytes()


def test_a_task_and_an_arm_that_break_leave_lines_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        {"name": "missing", "set": {"task.name": "mnist", "task.root": "nowhere"}},
        *DOCUMENT["tasks"]["entries"],
    ]
    arms = [{"kind": "ste"}, {"kind": "best_constant"}]
    document = arena(arms=arms, horizons=[1]) | {"tasks": {"entries": entries}}
    real = running.played

    def breaks(config: Any, schedule: Any, steps: int) -> Any:
        if config.task.width == 5 and config.method.name == "ste":
            raise RuntimeError("out of memory")
        return real(config, schedule, steps)

    with monkeypatch.context() as patch:
        patch.setattr(running, "played", breaks)
        assert play(tmp_path / "a", document) == 0
    said = capsys.readouterr().out
    assert "missing: MetaschedError: task.root: there is no folder nowhere" in said
    assert "plain, ste: RuntimeError: out of memory" in said and "left out: 3 arms broke" in said
    scores = read_scores(tmp_path / "a")
    broken = {(line.task, line.arm): line for line in scores.broken}
    assert set(broken) == {("missing", "ste"), ("missing", "best_constant"), ("plain", "ste")}
    assert all(math.isnan(score) for line in broken.values() for score in line.scores)
    assert "## Broken" in (tmp_path / "a" / "report.md").read_text()
    assert play(tmp_path / "a", document) == 0  # what broke is tried again
    assert {(line.task, line.arm) for line in read_scores(tmp_path / "a").broken} == {
        ("missing", "ste"), ("missing", "best_constant")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": [{"kind": "search", "of": "random"}]}, "an arm search needs it; give runs"),
        ({"arms": [{"kind": "ste", "of": "x"}]}, "an arm ste does not read it; leave it out"),
        ({"arms": [{"kind": "best"}]}, "unknown name 'best'"),
        ({"arms": [{"kind": "search", "of": "pbt", "runs": 3}]}, "unknown name 'pbt'"),
        ({"arms": [{"kind": "schedule", "of": "ana_statik"}]}, "did you mean 'ana_static'"),
        ({"arms": [{"kind": "portfolio", "of": "nothing", "first": 1}]}, "unknown name 'nothing'"),
        ({"arms": []}, "is empty: there is nothing to play"),
        ({"horizons": [1, 1]}, "has an item twice"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert play(tmp_path / "a", arena(**changes)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_torchrun_does_not_share_an_arena(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    assert play(tmp_path / "a") == 2
    assert "torchrun: does not share the work of `metasched arena run`" in capsys.readouterr().err


def test_it_needs_tasks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert play(tmp_path / "a", {k: v for k, v in DOCUMENT.items() if k != "tasks"}) == 2
    assert "tasks.entries: is empty" in capsys.readouterr().err


def test_other_tasks_seeds_and_files_do_not_join(tmp_path: Path) -> None:
    few = arena(arms=[{"kind": "ste"}], horizons=[1])
    assert play(tmp_path / "a", few) == 0
    assert play(tmp_path / "b", few | {"seed": 1}) == 0
    a, b = read_scores(tmp_path / "a"), read_scores(tmp_path / "b")
    with pytest.raises(MetaschedError, match=r"drawn\.0 is another task, or has other seeds"):
        join([("a", a), ("b", b)])
    assert join([("a", a), ("again", a)]) == a
    for text, message in (
        ("{}", "does not hold scores"),
        ("[", "is not JSON"),
        (dumps(a).replace("drawn.0", "x", 1), "no task"),
    ):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(MetaschedError, match=message):
            read_scores(tmp_path / "c.json")
    write_scores(tmp_path / "c.json", a)
    assert dumps(read_scores(tmp_path / "c.json")) == dumps(a)
    with pytest.raises(MetaschedError, match="holds no scores"):
        read_scores(tmp_path)


def test_tasks_of_an_entry_are_counted() -> None:
    with pytest.raises(MetaschedError, match="all of them would be the same task"):
        experiment_of(DOCUMENT | {"tasks": {"entries": [{"name": "a", "count": 2}]}})


def test_it_adds_its_runs_to_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "runs.jsonl"
    arms = [{"kind": "ste"}, LEARNED]
    document = arena(arms=arms, horizons=[1]) | {"run": {"workers": 1, "store": str(store)}}
    assert play(tmp_path / "folder", document) == 0
    rows = read_store(store)
    scores = read_scores(tmp_path / "folder")
    learned = sorted(value for line in scores.lines if line.arm == "digits_ana" for value in line.scores)
    stored = sorted(value for row in rows for value in row["scores"])  # floors play no schedule
    assert learned and learned == pytest.approx(stored, abs=1e-6)  # scores.jsonl rounds
    assert {row["method"] for row in rows} == {"ana"} and "adds no runs" not in capsys.readouterr().out
