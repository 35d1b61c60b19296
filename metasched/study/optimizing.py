"""What a call of ``Study.optimize`` does: tries what is enqueued, learns from the best start, judges the best again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from metasched.core.errors import MetaschedError
from metasched.evaluation.statistics import counted, lowest, summarize
from metasched.schedules.base import Schedule
from metasched.study.judging import Job
from metasched.study.learners import find_learner
from metasched.study.learning import LearnerSpec, Tried
from metasched.study.setup import Setup
from metasched.study.trying import in_order, repeats_of
from metasched.study.work import SELECT


@dataclass(frozen=True)
class Plan:
    """How a call spends its runs.

    Attributes:
        by: name of the learner.
        start: where it starts, unless what is enqueued is better.
        queue: schedules that are tried first.
        learning: runs of the training function that are left for the learner.
        runs: all of them.
        settings: of the learner.
    """

    by: str
    start: Tried
    queue: tuple[Tried, ...]
    learning: int
    runs: int
    settings: dict[str, Any]


class Outcome(NamedTuple):
    """The best finalist, its mean score, and where the learner started."""

    best: Tried
    score: float
    start: Tried


def planned(
    spec: LearnerSpec, start: Tried, queue: Sequence[Tried], runs: int, judged: int, settings: dict[str, Any]
) -> Plan:
    """The plan of a call: finalists, the start and the best of the queue are judged, and the learner has its least.

    What is left goes to the queue first, as far as it lasts, and then to the learner.

    Raises:
        MetaschedError: there are too few runs.
    """
    finalists, least = spec.finalists + 1 + bool(queue), spec.least(settings)
    repeats = repeats_of(settings) if queue else 0
    needed = finalists * judged + least + repeats
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < needed:
        problem = f"is {runs!r}: {spec.name} judges {finalists} schedules {judged} times, and needs {least} to learn"
        first = f"and {repeats} to try what is enqueued" if queue else ""
        raise MetaschedError("runs", f"{problem} {first}".strip(), f"give at least {needed}")
    free = runs - finalists * judged
    tried = min(len(queue), (free - least) // repeats) if queue else 0
    return Plan(spec.name, start, tuple(queue[:tried]), free - tried * repeats, runs, settings)


def learned(setup: Setup, plan: Plan, workers: int = 1) -> Outcome:
    """What a call finds; its helping processes do the same.

    Raises:
        MetaschedError: the training function failed, or diverged whenever it started at the start.
    """
    spec, asked, seeds = find_learner(plan.by), [0], setup.seeds(SELECT, setup.judged)

    def scores(pairs: Sequence[tuple[Schedule, int]]) -> list[float]:
        method = setup.work.method
        jobs = [Job(method, s, seed, f"{plan.by}: run {asked[0] + i}") for i, (s, seed) in enumerate(pairs, 1)]
        asked[0] += len(pairs)
        return setup.judge.scores(jobs)

    def log(text: str) -> None:
        setup.note(f"{plan.by} {text}{setup.judge.eta(plan.runs - asked[0], workers)}")

    def judged(tried: Tried) -> list[float]:
        return scores([(tried.schedule, seed) for seed in seeds])

    finalists, each = [plan.start], [judged(plan.start)]
    if all(score != score for score in each[0]):
        problem = f"every run of {plan.start.name}, where learning starts, gave NaN"
        raise MetaschedError("fit", problem, "lower its learning rate, or let it give a finite score")
    log(f"starts at {plan.start.name}: {best_of(finalists, each)[1]:.4f} over {len(seeds)} runs")
    learning = setup.learning(scores, log, plan.learning, plan.start, plan.settings)
    if plan.queue:
        finalists.append(in_order(replace(learning, log=lambda text: log(f"enqueued {text}")), plan.queue)[0])
        each.append(judged(finalists[-1]))
    start, score = best_of(finalists, each)
    if start is not plan.start:
        log(f"goes on from {start.name}: {score:.4f} over {len(seeds)} runs")
    found = spec.learn(replace(learning, start=start))[: spec.finalists]
    return Outcome(*best_of([*finalists, *found], [*each, *map(judged, found)]), start)


def best_of(finalists: Sequence[Tried], each: Sequence[Sequence[float]]) -> tuple[Tried, float]:
    """The finalist with the highest mean score, of equal ones the first; runs that diverged count as the lowest."""
    worst = lowest([score for own in each for score in own])
    means = [summarize(counted(own, worst)).mean for own in each]
    best = max(range(len(means)), key=lambda i: means[i])
    return finalists[best], means[best]
