"""Where learning starts: the controls that it learns, and the schedule that it begins at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.randomness import derive_seed
from metasched.evaluation.contenders import name_of, named_schedule
from metasched.evaluation.statistics import counted, lowest, summarize
from metasched.exchange.format import MAX_RUNS, Spent
from metasched.exchange.player import spent_on
from metasched.meta.checkpoint import Checkpoint
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.methods.spec import find_method
from metasched.runs.cells import cell_scores, played
from metasched.runs.pool import Mapper
from metasched.schedules.base import Schedule
from metasched.schedules.table import HandCoded, schedules_of
from metasched.tracking.console import Console
from metasched.tracking.tracker import Tracker
from metasched.training.problem import build_problem


class Start(NamedTuple):
    """The schedule that learning starts at: its name, itself, and the inner steps that choosing it took."""

    name: str
    schedule: Schedule
    selecting: int

    def spent(self, by: str, inner_steps: int) -> tuple[Spent, ...]:
        """What finding a schedule from here took: finding or choosing this one, and then so many steps by ``by``."""
        own = (Spent(by="best", inner_steps=self.selecting), Spent(by=by, inner_steps=inner_steps))
        before = spent_on(self.schedule)[: MAX_RUNS - len(own)]  # what a file may hold
        return (*before, *(entry for entry in own if entry.inner_steps))


def learned_controls(method: str, asked: Sequence[str] | None, controls: Sequence[Control]) -> list[str]:
    """The controls that the schedule network learns: those that are asked for, or (None) all with a derivative.

    Raises:
        MetaschedError: a name that the method does not declare, or no longer, or a control without a derivative.
    """
    known = {c.name: c for c in controls}
    for i, name in enumerate(asked or ()):
        if now := [new for new in find_method(method).former.get(name, ()) if new in known]:
            problem = f"{name!r} has become {' and '.join(now)}"
            raise MetaschedError(f"schedule.learn[{i}]", problem, f"write {', '.join(now)} in its place")
        if name not in known:
            problem = f"{method} has no control {name!r}"
            raise MetaschedError(f"schedule.learn[{i}]", problem, f"its controls are {', '.join(known) or 'none'}")
        if known[name].gradient == "none":
            raise MetaschedError(f"schedule.learn[{i}]", f"{name} has no derivative", "leave it out of schedule.learn")
    return list(asked) if asked is not None else [c.name for c in controls if c.gradient != "none"]


def given_start(config: ProblemConfig, start: str) -> tuple[str, Schedule] | None:
    """Name and schedule that learning starts at, where the configuration gives them; None for ``best``.

    Raises:
        MetaschedError: neither the name of a hand-coded schedule nor a schedule file that fits.
    """
    if start == "best":
        return None
    schedule = named_schedule(config, start, "schedule.start")
    return (start if isinstance(schedule, HandCoded) else name_of(Path(start))), schedule


def start_of(checkpoint: Checkpoint, given: tuple[str, Schedule] | None, method: MethodConfig) -> Start:
    """The start that a checkpoint names.

    Raises:
        MetaschedError: there is no such schedule.
    """
    known = dict([given]) if given else schedules_of(method)
    if checkpoint.start not in known:
        raise unknown_name("the checkpoint's start", checkpoint.start, known)
    return Start(checkpoint.start, known[checkpoint.start], checkpoint.selecting)


def best_start(config: ProblemConfig, runs: int, seed: int, pool: Mapper, tracker: Tracker, console: Console) -> Start:
    """The best hand-coded schedule.

    Every hand-coded schedule of the method is played on the same seeds; the best mean score on meta-validation wins.

    Args:
        config: the problem that is trained.
        runs: inner runs for each schedule.
        seed: of the experiment.
        pool: does the inner runs.
        tracker, console: receive the scores.
    """
    family, steps = schedules_of(config.method), config.task.steps
    seeds = [derive_seed(seed, "select", i) for i in range(runs)]
    values = {name: played(config, s, steps) for name, s in family.items()}
    work = [(config, values[name], [seed], steps, "validation") for name in family for seed in seeds]
    found = [score for (score,) in pool.map(cell_scores, work)]
    worst = build_problem(config).task.worst_score
    scores = counted(found, lowest(found) if worst is None else worst)
    means = {name: summarize(scores[i * runs : (i + 1) * runs]).mean for i, name in enumerate(family)}
    for name, mean in means.items():
        tracker.log({"select/name": name, "select/score": mean})
    best = max(means, key=lambda name: means[name])
    console.note(f"start: {best}, {means[best]:.4f} on meta-validation, best of {len(family)} hand-coded schedules")
    return Start(best, family[best], len(work) * steps)
