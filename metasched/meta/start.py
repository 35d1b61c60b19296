"""Where learning starts: the controls that it learns, and the schedule that it begins at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.randomness import derive_seed
from metasched.evaluation.contenders import name_of, named_schedule
from metasched.evaluation.statistics import counted, lowest, paired_difference, summarize
from metasched.evaluation.tuned_rate import TunedRate
from metasched.exchange.format import MAX_RUNS, Spent
from metasched.exchange.played import check_open_loop
from metasched.exchange.player import spent_on
from metasched.meta.checkpoint import Checkpoint
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.methods.spec import find_method
from metasched.runs.cells import cell_scores, played
from metasched.runs.pool import Mapper
from metasched.schedules.base import Schedule
from metasched.schedules.table import NO_SCHEDULE, HandCoded, floor_of, has_floor, schedules_of
from metasched.tracking.console import Console, watched
from metasched.tracking.tracker import Tracker
from metasched.training.problem import build_problem


class Searched(NamedTuple):
    """What a search found before learning, and what it took."""

    schedule: Schedule
    spent: Spent


class Start(NamedTuple):
    """Where learning starts.

    Attributes:
        name, schedule: of the schedule.
        selecting: inner steps that choosing it took.
        rate: the learning rate that was tuned with it; None: it is the experiment's.
        searched: what a search found from there, where hypergradients start then (hybrid.py); None: there was none.
    """

    name: str
    schedule: Schedule
    selecting: int
    rate: TunedRate | None = None
    searched: Searched | None = None

    @property
    def first(self) -> Schedule:
        """The schedule that hypergradients start at."""
        return self.searched.schedule if self.searched else self.schedule

    def spent(self, by: str, inner_steps: int, confirming: int = 0) -> tuple[Spent, ...]:
        """What finding a schedule from here took: finding or choosing this one, and then so many steps by ``by``.

        Args:
            by: estimator or search.
            inner_steps: that it took.
            confirming: inner steps that what was found and this schedule were played for then.
        """
        tuning = self.rate.inner_steps if self.rate else 0
        entries = (("tune_lr", tuning), ("best", self.selecting), (by, inner_steps), ("confirm", confirming))
        own = [Spent(by=name, inner_steps=steps) for name, steps in entries]
        if self.searched:
            own.insert(2, self.searched.spent)
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
        MetaschedError: neither the name of a hand-coded schedule nor a schedule file that fits, or no floor; or the
            file of a closed-loop schedule.
    """
    if start == "best":
        return None
    schedule = named_schedule(config, start, "schedule.start")
    check_open_loop(schedule, "schedule.start")
    return (start if isinstance(schedule, HandCoded) else name_of(Path(start))), schedule


def start_of(checkpoint: Checkpoint, given: tuple[str, Schedule] | None, method: MethodConfig) -> Start:
    """The start that a checkpoint names.

    Raises:
        MetaschedError: there is no such schedule.
    """
    known = dict([given]) if given else _candidates(method)
    if checkpoint.start not in known:
        raise unknown_name("the checkpoint's start", checkpoint.start, known)
    return Start(checkpoint.start, known[checkpoint.start], checkpoint.selecting)


def best_start(config: ProblemConfig, runs: int, seed: int, pool: Mapper, tracker: Tracker, console: Console) -> Start:
    """The floor, or the hand-coded schedule that is best on meta-validation, if that is above the floor.

    Every schedule is played on the same seeds. With a floor, those count whose paired difference to it has a 95 %
    interval (Student's t) above 0; the one with the best mean wins, and without any the floor does. A single run has no
    interval, so then nothing is played. Without a floor the best mean wins.

    Args:
        config: the problem that is trained.
        runs: inner runs for each schedule.
        seed: of the experiment.
        pool: does the inner runs.
        tracker, console: receive the scores.
    """
    candidates, steps = _candidates(config.method), config.task.steps
    if NO_SCHEDULE in candidates and runs < 2:
        console.note(f"start: {NO_SCHEDULE}, because meta.select_runs is 1 and one run has no interval")
        return Start(NO_SCHEDULE, candidates[NO_SCHEDULE], 0)
    seeds = [derive_seed(seed, "select", i) for i in range(runs)]
    values = {name: played(config, s, steps) for name, s in candidates.items()}
    work = [(config, values[name], [seed], steps, "validation") for name in candidates for seed in seeds]
    parts = watched(console, "runs to choose the start", pool.map(cell_scores, work), len(work))
    found = [score for (score,) in parts]
    worst = build_problem(config).task.worst_score
    scores = counted(found, lowest(found) if worst is None else worst)
    of_each = {name: scores[i * runs : (i + 1) * runs] for i, name in enumerate(candidates)}
    for name, own in of_each.items():
        tracker.log({"select/name": name, "select/score": summarize(own).mean})
    best, why = chosen(of_each)
    console.note(f"start: {best}, {summarize(of_each[best]).mean:.4f} on meta-validation, {why}")
    return Start(best, candidates[best], len(work) * steps)


def chosen(scores: Mapping[str, Sequence[float]]) -> tuple[str, str]:
    """The schedule that learning starts at, and why.

    Args:
        scores: {schedule: one score a seed}, at least 2 if the floor is among them.
    """
    means = {name: summarize(own).mean for name, own in scores.items()}
    others = [name for name in scores if name != NO_SCHEDULE]
    if NO_SCHEDULE not in scores:
        why = f"best of {len(others)} hand-coded schedules; there is no floor"
        return max(means, key=lambda name: means[name]), why
    over = {name: paired_difference(scores[name], scores[NO_SCHEDULE]) for name in others}
    above = [name for name, d in over.items() if d.low > 0 and d.p < 1]
    best = max(above or others, key=lambda name: means[name], default=NO_SCHEDULE)
    if best == NO_SCHEDULE:
        return NO_SCHEDULE, "there is no hand-coded schedule"
    d = over[best]
    interval = f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}], n = {d.n}"
    if above:
        of = (
            f"best of {len(above)} out of {len(others)} hand-coded schedules that are above the floor by their interval"
        )
        return best, f"{interval} against the floor: {of}"
    none = f"no one of {len(others)} hand-coded schedules is above it by its interval"
    return NO_SCHEDULE, f"{none}; the best, {best}: {interval}"


def _candidates(method: MethodConfig) -> dict[str, HandCoded]:
    """What ``best`` chooses from: the floor, if there is one, and the hand-coded schedules."""
    floor = {NO_SCHEDULE: floor_of(method, "schedule.start")} if has_floor(method) else {}
    return {**floor, **schedules_of(method)}
