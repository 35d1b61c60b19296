"""The second level of an arena: for each task and horizon the mean of each arm, and differences paired by seed.

The floor of a task is no schedule, with fixed (``ste``) or learned scales (``lsq``). At horizon 1 it is the one with
the better score on meta-validation, where learning rates were tuned there, so that the test part does not choose it.
Else, and at the other horizons, where nothing was tuned, it is the one with the better mean. Several searches of a
kind are one arm; its score from a seed is the mean over its searches.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from metasched.arena.scores import Line, Scores
from metasched.evaluation.comparison import FLOORS
from metasched.evaluation.statistics import PairedDifference, counted, lowest, paired_difference, summarize

_CLOSED = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class ArmOnTask:
    """What an arm did on a task.

    Attributes:
        kind: of the arm.
        mean, sd: of its scores over seeds, as they count; of several searches, of their mean from each seed.
        diverged: runs that diverged.
        spent: inner steps on meta-validation before, a search.
        searches: the mean of each search, in their order; empty for other arms.
        chosen, validation: what was chosen on meta-validation, and its score there, which flatters.
        over_floor: paired difference to the floor of the task over seeds; None for the floor, and with one seed.
    """

    kind: str
    mean: float
    sd: float
    diverged: int
    spent: float
    searches: tuple[float, ...] = ()
    chosen: str | None = None
    validation: float | None = None
    over_floor: PairedDifference | None = None


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class TaskResult:
    """One task at one horizon.

    Attributes:
        task, family, part: as in TaskInfo.
        horizon, steps: multiple of the task's steps, and the steps themselves.
        n: seeds.
        floor: the name of the floor; None where neither was played.
        arms: by name.
        broken: {arm that broke: why}.
    """

    task: str
    family: str
    part: str
    horizon: int
    steps: int
    n: int
    floor: str | None
    arms: dict[str, ArmOnTask]
    broken: dict[str, str]


_RESULTS: TypeAdapter[list[TaskResult]] = TypeAdapter(cast(Any, list[TaskResult]))


def results_of(tree: Any) -> list[TaskResult]:
    """The results that ``plain`` has given, as JSON has them."""
    return _RESULTS.validate_python(tree)


def plain(results: Sequence[TaskResult]) -> list[dict[str, Any]]:
    """The results as plain values, for JSON."""
    return [asdict(result) | {"arms": {n: _plain(a) for n, a in result.arms.items()}} for result in results]


def _plain(arm: ArmOnTask) -> dict[str, Any]:
    given = {name: value for name, value in asdict(arm).items() if value not in (None, ())}
    return given if arm.over_floor is None else given | {"over_floor": list(arm.over_floor)}


def per_task(scores: Scores) -> list[TaskResult]:
    """The results of each task at each horizon, in the order of the tasks."""
    lines: dict[tuple[str, int], list[Line]] = defaultdict(list)
    for line in scores.lines:
        lines[line.task, line.horizon].append(line)
    places = sorted(lines, key=lambda place: (list(scores.tasks).index(place[0]), place[1]))
    return [_result(scores, *place, lines[place]) for place in places]


def _result(scores: Scores, task: str, horizon: int, lines: Sequence[Line]) -> TaskResult:
    info = scores.tasks[task]
    whole = [line for line in lines if line.error is None]
    every = [score for line in whole for score in line.scores]
    worst = lowest(every) if info.worst is None else info.worst
    by_arm: dict[str, list[Line]] = defaultdict(list)
    for line in sorted(whole, key=lambda line: line.search):
        by_arm[line.arm].append(line)
    of_seeds = {name: _over_searches(own, worst) for name, own in by_arm.items()}
    floor = _floor(horizon, by_arm, of_seeds)
    arms = {}
    for name, own in by_arm.items():
        mean, sd, n = summarize(of_seeds[name])
        paired = floor not in (None, name) and n > 1
        arms[name] = ArmOnTask(
            kind=own[0].kind,
            mean=mean,
            sd=sd,
            diverged=sum(math.isnan(score) for line in own for score in line.scores),
            spent=sum(line.spent for line in own) / len(own),
            searches=tuple(summarize(counted(line.scores, worst)).mean for line in own) if own[0].search else (),
            chosen=own[0].chosen,
            validation=own[0].validation,
            over_floor=paired_difference(of_seeds[name], of_seeds[floor]) if paired and floor else None,
        )
    return TaskResult(
        task=task,
        family=info.family,
        part=info.part,
        horizon=horizon,
        steps=horizon * info.steps,
        n=len(info.seeds),
        floor=floor,
        arms=arms,
        broken={line.arm: line.error for line in lines if line.error is not None},
    )


def _over_searches(lines: Sequence[Line], worst: float) -> list[float]:
    """The score from each seed: the mean over the searches of the arm."""
    return [summarize(column).mean for column in zip(*(counted(line.scores, worst) for line in lines), strict=True)]


def _floor(horizon: int, by_arm: dict[str, list[Line]], of_seeds: dict[str, list[float]]) -> str | None:
    played = [name for name in FLOORS if name in by_arm]
    if not played:
        return None
    named = {name: by_arm[name][0].validation for name in played}
    if horizon == 1 and all(score is not None for score in named.values()):
        return max(played, key=lambda name: cast(float, named[name]))
    return max(played, key=lambda name: summarize(of_seeds[name]).mean)
