"""Runs an arena: all arms of a task, then all of the next, each line once.

A line that is known already, from a run that was stopped or from a file of another arena, is not trained again: it is
known by a hash of all that it depends on. A task or an arm that breaks leaves lines of NaN with the reason, and the
arena goes on; a later run tries these again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from metasched.arena.arms import Made, Planned, Setting, plan, task_seeds
from metasched.arena.config import ArmEntry
from metasched.arena.scores import Line, Scores, TaskInfo, of_rows, read_scores, row_of
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.evaluation.contenders import by_method
from metasched.evaluation.references import fixed_scales
from metasched.exchange.portfolios import content_hash, parameters_of
from metasched.exchange.shipped import file_of
from metasched.families.family import NamedTask, TaskFamily
from metasched.io.json_lines import JsonLines
from metasched.methods.spec import FLOOR
from metasched.runs.cells import CachedPool, cell_scores, cells_key, played, shares
from metasched.runs.store import store_at
from metasched.runs.where import open_pool
from metasched.tracking.console import Console
from metasched.training.problem import build_problem

_BREAKS = (ValueError, RuntimeError, ArithmeticError)  # MetaschedError is a ValueError


def run_arena(experiment: Experiment, folder: Path, console: Console, known: Sequence[Path] = ()) -> Scores:
    """The raw scores of all arms on all tasks; ``scores.jsonl`` and ``cells.jsonl`` in the folder grow as they come.

    Args:
        experiment: its sections ``tasks`` and ``arena`` say what runs.
        folder: where an arena that was stopped goes on.
        console: the arms of a task as they come, and a line a task, with what is left.
        known: folders and files of scores that need not be trained again.

    Raises:
        MetaschedError: a file of known scores that cannot be read, or a write that failed.
    """
    family = TaskFamily(experiment)
    path = folder / "scores.jsonl"
    ours = read_scores(folder) if path.exists() else Scores({}, ())
    lines = {line.key: line for part in (*map(read_scores, known), ours) for line in part.whole}
    tasks = family.all()
    clock = _Clock([_weight(experiment, family, task) for task in tasks])
    rows = []
    with closing(JsonLines(path)) as out:
        for number, task in enumerate(tasks, 1):
            found = []
            for item in _on_task(experiment, family, task, lines, folder, console):
                found.append(item)
                rows.append(row_of(item))
                if item not in ours.lines and item not in ours.tasks.values():
                    out.write(rows[-1])
            of_task = [item for item in found if isinstance(item, Line)]
            broken = sum(line.error is not None for line in of_task)
            new = sum(line.error is None and line.key not in lines for line in of_task)
            left = clock.after(number, new > 0)
            said = f"{len(of_task)} results, {new} new{f', {broken} broken' if broken else ''}"
            console.note(f"task {number}/{len(tasks)} {task.name}: {said}{left}")
    return of_rows(rows, str(path))


class _Clock:
    """How long the rest will take, from the steps of the tasks that were trained."""

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights, self._last = weights, time.monotonic()
        self._seconds, self._steps = 0.0, 0

    def after(self, number: int, trained: bool) -> str:
        now = time.monotonic()
        if trained:
            self._seconds += now - self._last
            self._steps += self._weights[number - 1]
        self._last = now
        left = sum(self._weights[number:])
        if not left or not self._steps:
            return ""
        seconds = self._seconds * left / self._steps
        return f"; about {seconds / 60:.0f} min left" if seconds >= 90 else f"; about {seconds:.0f} s left"


def _weight(experiment: Experiment, family: TaskFamily, task: NamedTask) -> int:
    """The steps of a run of a task, to tell long tasks from short ones; 1 where it cannot be made."""
    try:
        return family.drawn(task.entry, task.seed).experiment.task.steps
    except MetaschedError:
        return 1


def _on_task(
    experiment: Experiment, family: TaskFamily, task: NamedTask, known: dict[str, Line], folder: Path, console: Console
) -> Iterator[TaskInfo | Line]:
    """The task, and a line for each arm and horizon."""
    arena = experiment.arena
    seeds = task_seeds(experiment.seed, task.name, arena.part, arena.seeds)
    info = TaskInfo(task=task.name, family=task.entry.name, part=arena.part, seeds=tuple(seeds))
    try:
        own = family.drawn(task.entry, task.seed).experiment
        built = build_problem(own.problem)
        bare = by_method(fixed_scales(own.problem), FLOOR)
        key = cells_key(bare, {}, [], own.task.steps, "validation")
        info = replace(info, key=key, steps=own.task.steps, worst=built.task.worst_score)
    except _BREAKS as error:
        console.note(f"{task.name}: {_why(error)}")
        yield info
        yield from (_broken(info, e, h, _why(error)) for e in arena.arms for h in arena.horizons)
        return
    yield info
    store = store_at(own.run.store)
    with open_pool(own.run) as pool, closing(CachedPool(pool, folder / "cells.jsonl", store=store)) as cells:
        setting = Setting(task.name, own, cells, console)
        done = set[str]()
        for number, entry in enumerate(arena.arms):
            console.progress(f"arms on {task.name}", number, len(arena.arms))
            try:
                planned = [one for one in plan(setting, entry) if not (one.search == 0 and one.arm in done)]
            except _BREAKS as error:
                console.note(f"{task.name}, {entry.label}: {_why(error)}")
                yield from (_broken(info, entry, h, _why(error)) for h in arena.horizons)
                continue
            done |= {one.arm for one in planned}
            for one in planned:
                yield from _lines(setting, info, entry, one, known)
        console.progress(f"arms on {task.name}", len(arena.arms), len(arena.arms))


def _lines(setting: Setting, info: TaskInfo, entry: ArmEntry, one: Planned, known: dict[str, Line]) -> Iterator[Line]:
    """The lines of an arm, one a horizon."""
    made: Made | None = None
    path = None if one.schedule is None else file_of(one.schedule)
    for horizon in setting.arena.horizons:
        steps, seeds = horizon * setting.steps, list(info.seeds)
        try:
            key = one.key(seeds, steps, info.part)
            if key in known:
                place = {"task": info.task, "arm": one.arm, "search": one.search, "horizon": horizon}
                yield replace(known[key], **place, kind=entry.kind, schedule=one.schedule, hash=_hash(path))
                continue
            made = made or one.make()
            arm = made.contender
            controls = played(arm.problem, arm.schedule, steps)
            work = [
                (arm.problem, controls, part, steps, info.part) for part in shares(arm.problem, seeds, setting.pool)
            ]
            scores = [score for part in setting.pool.map(cell_scores, work) for score in part]
        except _BREAKS as error:
            setting.console.note(f"{info.task}, {one.arm}: {_why(error)}")
            yield replace(_broken(info, entry, horizon, _why(error)), arm=one.arm, search=one.search)
            continue
        method = arm.problem.method
        yield Line(
            task=info.task,
            arm=one.arm,
            kind=entry.kind,
            horizon=horizon,
            scores=tuple(float(f"{score:.7g}") for score in scores),
            key=key,
            search=one.search,
            method=method.name,
            levels=method.levels,
            activation_levels=method.activation_levels,
            parameters=parameters_of(method),
            schedule=one.schedule,
            hash=_hash(path),
            chosen=made.chosen,
            validation=made.validation,
            spent=made.spent,
        )


def _hash(path: Path | None) -> str | None:
    return None if path is None else content_hash(path)


def _broken(info: TaskInfo, entry: ArmEntry, horizon: int, why: str) -> Line:
    nothing = (math.nan,) * len(info.seeds)
    return Line(task=info.task, arm=entry.label, kind=entry.kind, horizon=horizon, scores=nothing, error=why)


def _why(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
