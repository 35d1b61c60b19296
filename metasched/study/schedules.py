"""Schedules of a study: those that it is given, the file of what it found, and the floors that it is compared with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from metasched.config.load import of_method
from metasched.core.errors import MetaschedError
from metasched.core.features import features_of
from metasched.evaluation.comparison import LSQ
from metasched.evaluation.references import with_learned_scales, without_learned_scales
from metasched.exchange.export import export
from metasched.exchange.format import MAX_RUNS, Metric, Provenance, ScheduleFile, Spent
from metasched.exchange.played import PlayedSchedule, check_open_loop, for_task
from metasched.exchange.player import check_method, load, spent_on
from metasched.exchange.schedule_file import dumps
from metasched.io.environment import versions
from metasched.methods.config import MethodConfig
from metasched.methods.spec import CEILING, FLOOR
from metasched.schedules.base import Schedule
from metasched.schedules.table import NO_SCHEDULE, HandCoded, floor_of, hand_coded, has_floor, schedules_of
from metasched.study.learning import Tried, named
from metasched.study.work import Work, describe


@dataclass(frozen=True)
class Found:
    """A schedule that a call of ``optimize`` found.

    Attributes:
        learner: by which.
        name: of the schedule: the learner's, or that of one it started from or tried.
        score: mean validation score over ``judged`` runs of their own, the same for all finalists of a study.
        judged: see above.
        runs: of the training function, that the call was given in all.
        file: of the folder, with the schedule.
    """

    learner: str
    name: str
    score: float
    judged: int
    runs: int
    file: str


Given = str | os.PathLike[str] | Schedule  # the name of a schedule, the path of a file, or a schedule


def resolved_all(given: Iterable[Given | Iterable[Given]], work: Work, knots: int, path: str) -> list[Tried]:
    """Schedules, and those of lists of them, as ``resolved`` gives them, in their order.

    Raises:
        MetaschedError: something else, or as ``resolved``.
    """
    found = []
    for one in given:
        several = isinstance(one, Iterable) and not isinstance(one, str | os.PathLike) and not callable(one)
        items = cast(Iterable[Given], one) if several else [cast(Given, one)]
        found += [resolved(item, work, knots, path) for item in items]
    return found


def resolved(given: Given, work: Work, knots: int, path: str) -> Tried:
    """A schedule for the method of a study, with its name.

    Args:
        given: ``floor``, a name, the path of a file, or a schedule.
        work: what is trained.
        knots: of curves between knots.
        path: what error messages begin with.

    Raises:
        MetaschedError: no such schedule, one of another method, or a closed-loop one.
    """
    method = work.method
    family = schedules_of(method)
    if isinstance(given, str) and given == NO_SCHEDULE:
        if has_floor(method) or not family:
            return named(NO_SCHEDULE, floor_of(method, path), knots)
        given = next(iter(family))
    if isinstance(given, str) and given in family:
        return named(given, family[given], knots)
    schedule = load(given) if isinstance(given, str | os.PathLike) else given
    if not callable(schedule):
        problem = f"has a {type(schedule).__name__} for a schedule"
        raise MetaschedError(path, problem, "give a name, the path of a file, or a schedule")
    if isinstance(schedule, PlayedSchedule):
        check_open_loop(schedule, path)
        check_method(schedule.file, method.name, work.controls, path)
        own = for_task(schedule, lambda: features_of(work.layers, work.steps))
        return named(schedule.file.provenance.name, own, knots)
    if isinstance(schedule, HandCoded) and not {c.name for c in work.controls} <= schedule.curves.keys():
        problem = f"{schedule.name} is for {schedule.family}, not {method.name}"
        if schedule.family == method.name:
            missing = next(c.name for c in work.controls if c.name not in schedule.curves)
            problem = f"{schedule.name} does not set {missing} of this {method.name}"
        raise MetaschedError(path, problem, f"give one of {', '.join((*family, 'a file'))}")
    return named(getattr(schedule, "name", "given"), schedule, knots)


def file_of(
    best: Tried, start: Tried, work: Work, learner: str, score: float, judged: int, runs: int, seed: int
) -> ScheduleFile:
    """The schedule file of what a learner found.

    Args:
        best: what it found.
        start: where it started.
        work: what was trained.
        learner: how.
        score, judged: mean validation score, and the runs that it is the mean of.
        runs: of the training function in all.
        seed: of the study.
    """
    how = f"a study by metasched: {learner}, {runs} runs of {work.steps} steps, from {start.name}"
    by_hand = best.schedule if isinstance(best.schedule, HandCoded) else None
    before = (spent_on(best.schedule) or spent_on(start.schedule))[: MAX_RUNS - 1]
    provenance = Provenance(
        kind="hand-coded" if by_hand else "learned" if learner == "es" else "tuned",
        name=best.name,
        citation=by_hand.citation if by_hand else how,
        seeds=(seed,),
        versions=versions(),
        metric=Metric(name="validation score", value=score, n=judged),
        spent=(*before, Spent(by=learner, inner_steps=runs * work.steps)),
    )
    return export(
        best.schedule,
        method_name=work.method.name,
        method_parameters={name: v for name, v in describe(work.method).items() if name != "name"},
        controls=work.controls,
        layers=work.layers,
        knots=best.knots,
        interpolation=best.interpolation,
        provenance=provenance,
    )


def digest(file: ScheduleFile) -> str:
    """Eight hexadecimal digits of a schedule file."""
    return hashlib.blake2b(dumps(file).encode(), digest_size=4).hexdigest()


def references(method: MethodConfig) -> dict[str, tuple[MethodConfig, Schedule]]:
    """The floors and the ceiling of a method, {name: (method, schedule)}; see evaluation/references.py."""
    fixed = without_learned_scales(method)
    ste, none = of_method(fixed, FLOOR), hand_coded(FLOOR)[FLOOR]
    return {
        FLOOR: (ste, none),
        LSQ: (with_learned_scales(ste), none),
        CEILING: (of_method(fixed, CEILING), hand_coded(CEILING)[CEILING]),
    }
