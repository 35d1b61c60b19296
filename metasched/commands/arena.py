"""``metasched arena``: arms on many tasks, and the page that follows from their scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metasched.arena.arms import check_arms
from metasched.arena.page import cells, columns, write_report
from metasched.arena.per_task import per_task
from metasched.arena.running import run_arena
from metasched.arena.scores import Scores, join, read_scores, write_scores
from metasched.arena.tables import FLOOR
from metasched.config.schema import Experiment
from metasched.config.writing import dump_yaml, to_dict
from metasched.core.errors import MetaschedError
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.runs.ranks import refuse_ranks
from metasched.tracking.console import Console

_SHOWN = 6  # columns of a table that fit into a terminal


def run(experiment: Experiment, path: Path, console: Console, known: Sequence[Path] = ()) -> dict[str, Any]:
    """Plays the arena in a folder, a new one or that of an arena before, and reports it.

    Args:
        experiment: its sections ``tasks`` and ``arena`` say what runs.
        path: of the folder; what is in it already is not trained again, also if arms or tasks have joined.
        console: where progress and tables are shown.
        known: folders and files of other arenas' scores, likewise.

    Returns:
        paths, and how many lines there are, and have broken.

    Raises:
        MetaschedError: no tasks, an arm that cannot be, a folder with something else, a file that is no scores.
    """
    refuse_ranks("arena run")
    if not experiment.tasks.entries:
        problem = "is empty: an arena plays on the tasks that are listed there"
        raise MetaschedError("tasks.entries", problem, "list at least one task, see docs/arena.md")
    check_arms(experiment)
    for other in known:
        read_scores(other)
    folder = RunFolder(path)
    folder = RunFolder.resume(path, "arena") if folder.config.exists() else RunFolder.claim(path, "arena")
    try:
        write_atomic(folder.config, dump_yaml(to_dict(experiment)).encode())
        write_atomic(folder.environment, json_text(environment(), indent=2).encode())
        scores = run_arena(experiment, path, console, known)
        write_scores(path / "scores.json", scores)
    finally:
        folder.release()
    return _reported(path, scores, [FLOOR], console)


def report(given: Sequence[Path], output: Path | None, against: Sequence[str], console: Console) -> dict[str, Any]:
    """The page of the scores in folders and files, joined; nothing is trained.

    Args:
        given: folders of arenas, and files of scores.
        output: folder of the page; None: the first one that is given.
        against: arms that all others are held against; empty: the floor.
        console: where the tables are shown.

    Raises:
        MetaschedError: scores that cannot be read or joined, no arm of a name, or no folder to write to.
    """
    scores = join([(str(path), read_scores(path)) for path in given])
    if not scores.whole:
        raise MetaschedError(str(given[0]), "has no scores yet, or every arm broke", "run the arena first")
    folder = output or given[0]
    if output is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MetaschedError(str(folder), f"cannot be made ({error.strerror})", "give another folder") from error
    if not folder.is_dir():
        raise MetaschedError(str(folder), "is a file, and the page needs a folder", "give one with --output")
    return _reported(folder, scores, list(dict.fromkeys(against)) or [FLOOR], console)


def _reported(folder: Path, scores: Scores, against: Sequence[str], console: Console) -> dict[str, Any]:
    if not scores.whole:
        raise MetaschedError(str(folder), "every arm broke on every task", "see the lines above")
    found = write_report(folder, scores, per_task(scores), against)
    for table in found:
        rows = [cells(row)[:_SHOWN] for row in table.rows]
        console.table(f"{table.horizon} x the steps, against {table.against}", columns(table)[:_SHOWN], rows)
    broken = sorted({(line.task, line.arm) for line in scores.broken})
    if broken:
        console.note(f"left out: {len(broken)} arms broke on a task, such as {broken[0][1]} on {broken[0][0]}")
    parts = {"tasks": len(scores.tasks), "lines": len(scores.lines), "broken": len(broken)}
    return {"report": str(folder / "report.md"), **parts, "tables": [table.to_dict() for table in found]}
