"""What every way of learning is given, and what it gives back: schedules that were tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.evaluation.statistics import counted, lowest, summarize
from metasched.exchange.played import PlayedSchedule
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.interpolation import Interpolation
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import HandCoded
from metasched.study.work import Work

HIDDEN = 32  # units of the schedule network
REPEATS = 2  # runs in which a candidate is tried


class Tried(NamedTuple):
    """A schedule that was tried.

    Attributes:
        name: what it is called in tables.
        schedule: gives the values.
        knots: progress [K], float64, at which a file of it has values, with ``interpolation`` between them.
        score: mean validation score of the runs in which it was tried; NaN where there are none.
    """

    name: str
    schedule: Schedule
    knots: torch.Tensor
    interpolation: Interpolation
    score: float = math.nan


Scores = Callable[[Sequence[tuple[Schedule, int]]], list[float]]


@dataclass(frozen=True)
class Learning:
    """What a learner is given.

    Attributes:
        scores: plays (schedule, seed) pairs at once, and gives a score each.
        log: called with a line after each part of it.
        runs: of the training function, that it may take.
        start: where it starts.
        work: what is trained.
        learn: names of the controls that are moved.
        knots, directions: of the schedule network.
        seed: of the study.
        settings: its own, by name.
    """

    scores: Scores
    log: Callable[[str], None]
    runs: int
    start: Tried
    work: Work
    learn: tuple[str, ...]
    knots: int
    directions: int
    seed: int
    settings: dict[str, Any]

    def network(self) -> ScheduleNetwork:
        """A learnable schedule that starts at the start."""
        return ScheduleNetwork(
            self.work.controls,
            self.start.schedule,
            self.learn,
            knots=self.knots,
            hidden=HIDDEN,
            seed=derive_seed(self.seed, "schedule network"),
            layers=self.work.layers,
            most=self.directions,
        )


@dataclass(frozen=True)
class LearnerSpec:
    """One row of the table of learners.

    Attributes:
        name: what ``Study.optimize`` takes.
        summary: description in a few words.
        learn: Learning -> what it would have judged again, the best first.
        finalists: how many of them are judged again.
        settings: names of its settings.
        least: settings -> runs of the training function that it needs at least.
    """

    name: str
    summary: str
    learn: Callable[[Learning], list[Tried]]
    finalists: int
    settings: tuple[str, ...]
    least: Callable[[dict[str, Any]], int]


def named(name: str, schedule: Schedule, knots: int) -> Tried:
    """A schedule, with the knots that a file of it needs."""
    if isinstance(schedule, PlayedSchedule):
        return Tried(name, schedule, schedule.knots, schedule.file.interpolation)
    if isinstance(schedule, HandCoded):
        return Tried(name, schedule, schedule.knots(knots), schedule.interpolation)
    return Tried(name, schedule, getattr(schedule, "knots", progress_of_steps(knots)), "linear")


def mean_scores(
    learning: Learning, schedules: Sequence[Schedule], seeds: Sequence[Sequence[int]], seen: list[float]
) -> list[float]:
    """The mean score of each schedule over its seeds, all of which are run at once; their scores join ``seen``.

    A run that diverged counts as the lowest score that was seen so far.
    """
    work = [(schedule, seed) for schedule, own in zip(schedules, seeds, strict=True) for seed in own]
    scores = learning.scores(work)
    seen += scores
    each = iter(counted(scores, lowest(seen)))
    return [summarize([next(each) for _ in own]).mean for own in seeds]


def setting(settings: dict[str, Any], name: str, default: int) -> int:
    """A setting that is a number of runs.

    Raises:
        MetaschedError: it is none.
    """
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MetaschedError(name, f"must be a number of runs, at least 1, got {value!r}", "correct it")
    return value


def section(config: Any, fields: dict[str, Any]) -> Any:
    """A section of an experiment with these fields.

    Raises:
        MetaschedError: a value that a field cannot have.
    """
    try:
        return config(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise MetaschedError(
            str(first["loc"][-1] if first["loc"] else "settings"), first["msg"], "correct it"
        ) from None
