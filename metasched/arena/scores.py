"""Raw scores of an arena, the first of its three levels: everything else follows from them without training.

A line is what one arm scored on one task at one horizon, from the seeds of the task. While an arena runs, lines are
appended to ``scores.jsonl``; ``scores.json`` has the same in canonical, compact form, to be kept and to be joined.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from metasched.core.errors import MetaschedError, printable
from metasched.io.atomic import write_atomic
from metasched.io.json_lines import read_json_lines
from metasched.io.json_text import json_text
from metasched.io.reading import read_regular

FORMAT = "metasched.arena"
MAX_BYTES = 2**26
_CLOSED = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class TaskInfo:
    """A task of an arena.

    Attributes:
        task: its name.
        family: the entry of ``tasks`` that it is drawn from.
        part: ``test`` or ``validation``, where the scores were read.
        seeds: of the inner runs, the same for all arms.
        key: a hash of all that trains without a schedule: tasks with the same key are the same task; empty where it
            could not be made.
        steps: T at horizon 1.
        worst: what a run that diverged counts; None: the lowest score of the task.
    """

    task: str
    family: str
    part: Literal["test", "validation"]
    seeds: tuple[int, ...]
    key: str = ""
    steps: int = 0
    worst: float | None = None


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Line:
    """What one arm scored on one task at one horizon.

    Attributes:
        task, arm: their names.
        kind: of the arm.
        horizon: a multiple of the task's steps.
        scores: one a seed of the task, in seven digits, as many as float32 has; NaN for a run that diverged, and all
            NaN where the arm broke.
        key: a hash of all that they depend on; empty where the arm broke.
        search: the number of the search, from 1; 0 for other arms.
        method, levels, activation_levels, parameters: the recipe that was trained.
        schedule: name or path of the schedule where it is the same on all tasks.
        hash: SHA-256 of its file.
        chosen: what was chosen on meta-validation, and its mean score there, which flatters.
        spent: inner steps that this took.
        error: why the arm broke.
    """

    task: str
    arm: str
    kind: str
    horizon: int
    scores: tuple[float, ...]
    key: str = ""
    search: int = 0
    method: str = ""
    levels: str = ""
    activation_levels: str | None = None
    parameters: dict[str, Any] | None = None
    schedule: str | None = None
    hash: str | None = None
    chosen: str | None = None
    validation: float | None = None
    spent: int = 0
    error: str | None = None

    @property
    def place(self) -> tuple[str, int, str, int]:
        """What it is the only line of."""
        return self.task, self.horizon, self.arm, self.search


@dataclass(frozen=True, config=_CLOSED)
class Scores:
    """Raw scores: tasks by name, and lines; of lines with one place the last one counts."""

    tasks: dict[str, TaskInfo]
    lines: tuple[Line, ...]

    @property
    def whole(self) -> list[Line]:
        """The lines of arms that did not break."""
        return [line for line in self.lines if line.error is None]

    @property
    def broken(self) -> list[Line]:
        """The others."""
        return [line for line in self.lines if line.error is not None]


_TASK: TypeAdapter[TaskInfo] = TypeAdapter(cast(Any, TaskInfo))
_LINE: TypeAdapter[Line] = TypeAdapter(cast(Any, Line))


def row_of(item: TaskInfo | Line) -> dict[str, Any]:
    """The fields that differ from their defaults, in sorted order."""
    default = {f.name: f.default for f in fields(item)}
    given = {name: value for name, value in sorted(asdict(item).items())}
    return {name: v for name, v in given.items() if default[name] is MISSING or v != default[name]}


def dumps(scores: Scores) -> str:
    """The canonical text: tasks and lines in sorted order, one a line."""
    tasks = [scores.tasks[name] for name in sorted(scores.tasks)]
    lines = sorted(scores.lines, key=lambda line: line.place)
    rows = [",\n".join(json_text(row_of(item)) for item in items) for items in (tasks, lines)]
    return f'{{"format": "{FORMAT}", "version": 1,\n"tasks": [\n{rows[0]}\n],\n"lines": [\n{rows[1]}\n]}}\n'


def write_scores(path: Path, scores: Scores) -> None:
    """Writes ``scores.json``."""
    write_atomic(path, dumps(scores).encode())


def read_scores(path: str | os.PathLike[str]) -> Scores:
    """The raw scores of an arena's folder, also of one that was stopped, or of a file.

    Raises:
        MetaschedError: there are none, or they cannot be read.
    """
    place = Path(path)
    if not place.is_dir():
        return _of_file(place)
    whole, parts = place / "scores.json", place / "scores.jsonl"
    if parts.is_file():
        return of_rows(read_json_lines(parts), str(parts))
    if whole.is_file():
        return _of_file(whole)
    raise MetaschedError(printable(str(path)), "holds no scores", "give the folder of `metasched arena run`")


def _of_file(path: Path) -> Scores:
    where = printable(str(path))
    data = read_regular(path, MAX_BYTES, "give a scores.json of `metasched arena run`")
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        raise MetaschedError(where, "is not JSON", "give a scores.json of `metasched arena run`") from None
    if not isinstance(tree, dict) or (tree.get("format"), tree.get("version")) != (FORMAT, 1):
        raise MetaschedError(where, "does not hold scores of an arena", "give a scores.json of `metasched arena run`")
    rows = [row for name in ("tasks", "lines") for row in (tree.get(name) or ())]
    return of_rows(rows, where)


def of_rows(rows: Iterable[Any], where: str) -> Scores:
    """The scores of rows as ``row_of`` gives them, the last one of a place.

    Raises:
        MetaschedError: a row is neither a task nor a line, or a line is of no task or of another number of seeds.
    """
    tasks: dict[str, TaskInfo] = {}
    lines: dict[tuple[Any, ...], Line] = {}
    for number, row in enumerate(rows, 1):
        try:
            if isinstance(row, dict) and "arm" in row:
                line = _LINE.validate_python(row)
                lines[line.place] = line
            else:
                info = _TASK.validate_python(row)
                tasks[info.task] = info
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise MetaschedError(f"{where}: row {number}: {place}", first["msg"], "leave the row out") from None
    for line in lines.values():
        if line.task not in tasks or len(line.scores) != len(tasks[line.task].seeds):
            problem = f"the line of {line.arm} on {line.task} has no task of so many seeds"
            raise MetaschedError(where, problem, "restore the file as it was written")
    return Scores(tasks, tuple(lines.values()))


def join(parts: Sequence[tuple[str, Scores]]) -> Scores:
    """The scores of several arenas as one: arms of one join those of another on the tasks that both have.

    Args:
        parts: at least one, each with what messages call it.

    Raises:
        MetaschedError: two have different tasks, seeds or results of one name.
    """
    tasks: dict[str, TaskInfo] = {}
    lines: dict[tuple[Any, ...], Line] = {}
    for where, scores in parts:
        for name, info in scores.tasks.items():
            known = tasks.get(name)
            if known is not None and known.key and info.key and known != info:
                problem = f"{name} is another task, or has other seeds, than in what was given before"
                raise MetaschedError(where, problem, "join arenas with the same tasks and seeds only")
            if known is None or not known.key:
                tasks[name] = info
        for line in scores.lines:
            before = lines.get(line.place)
            if before is not None and None is before.error is line.error and before.key != line.key:
                problem = f"{line.arm} on {line.task} is another arm than the one of this name given before"
                raise MetaschedError(where, problem, "rename one of them")
            if before is None or before.error is not None:
                lines[line.place] = line
    return Scores(tasks, tuple(lines.values()))
