"""What ``Study.compare`` does: the arms, their scores from the same seeds, and the comparison of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metasched.core.errors import MetaschedError
from metasched.evaluation.comparison import Arm, Comparison, Drawn
from metasched.evaluation.figures import progress
from metasched.evaluation.statistics import counted, lowest, summarize
from metasched.exchange.format import Spent
from metasched.methods.config import MethodConfig
from metasched.schedules.base import Schedule
from metasched.schedules.table import schedules_of
from metasched.study.judging import Job
from metasched.study.learning import Tried, named
from metasched.study.optimizing import best_of
from metasched.study.schedules import references
from metasched.study.setup import Setup
from metasched.study.trying import in_order
from metasched.study.work import COMPARE, SELECT
from metasched.tasks.fingerprint import code_fingerprint

LEARNED = "learned"
_JUDGED = 3  # published schedules of which the best is found in runs of their own

Arms = dict[str, tuple[MethodConfig, Schedule]]


@dataclass(frozen=True)
class Contest:
    """What a call compares.

    Attributes:
        best: what the study found.
        others: schedules that the call names.
        published: whether the best published schedule is an arm.
        seeds: number of seeds.
        evaluate: in place of the work's own, if not None.
    """

    best: Schedule
    others: tuple[Tried, ...]
    published: bool
    seeds: int
    evaluate: Callable[..., Any] | None


def contested(setup: Setup, contest: Contest, workers: int = 1) -> tuple[Arms, dict[str, list[float]]]:
    """The arms and the score of each from each seed; helping processes do the same.

    Raises:
        MetaschedError: two arms of one name, or the training function failed.
    """
    method = setup.work.method
    others = {tried.name: (method, tried.schedule) for tried in contest.others}
    if len(others) < len(contest.others) or {LEARNED, *references(method)} & {*others}:
        names = ", ".join((LEARNED, *(tried.name for tried in contest.others), *references(method)))
        raise MetaschedError("schedules", "two arms have the same name", f"they are {names}")
    if contest.published and (best := best_published(setup, [*others])) is not None:
        others.setdefault(best.name, (method, best.schedule))
    arms = {LEARNED: (method, contest.best), **others, **references(method)}
    return arms, _scores(setup, arms, contest, workers)


def best_published(setup: Setup, known: Sequence[str] = ()) -> Tried | None:
    """The best hand-coded schedule by validation scores; None where there is none, or all are in ``known``.

    Each is tried in the runs in which ``portfolio`` tries it, and the three best are judged again as finalists are; so
    what a study has done is not done again.
    """
    family = [named(name, s, setup.knots) for name, s in schedules_of(setup.work.method).items()]
    if all(tried.name in known for tried in family):
        return None

    def scores(pairs: Sequence[tuple[Schedule, int]]) -> list[float]:
        return setup.judge.scores([Job(setup.work.method, s, seed, "compare: published") for s, seed in pairs])

    def log(text: str) -> None:
        setup.note(f"compare: published {text}")

    if len(family) == 1:
        return family[0]
    tried = in_order(setup.learning(scores, log, 0, family[0], {}), family)[:_JUDGED]
    seeds = setup.seeds(SELECT, setup.judged)
    return best_of(tried, [scores([(t.schedule, seed) for seed in seeds]) for t in tried])[0]


def _scores(setup: Setup, arms: Arms, contest: Contest, workers: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    by = "" if contest.evaluate is None else code_fingerprint(contest.evaluate)
    for name, (method, schedule) in arms.items():
        seeds = setup.seeds(COMPARE, contest.seeds)
        jobs = [Job(method, schedule, seed, f"compare: {name}", contest.evaluate) for seed in seeds]
        found[name] = setup.judge.scores(jobs, by)
        mean = summarize(counted(found[name], lowest(found[name]))).mean
        eta = setup.judge.eta((len(arms) - len(found)) * contest.seeds, workers)
        setup.note(f"compare {name}: {mean:.4f} over {contest.seeds} seeds{eta}")
    return found


def comparison_of_scores(
    setup: Setup, arms: Arms, scores: Mapping[str, Sequence[float]], spent: tuple[Spent, ...]
) -> Comparison:
    """The comparison of arms.

    Args:
        setup: of the study.
        arms: by name.
        scores: of each, one a seed.
        spent: what finding the best one took.
    """
    worst, steps = lowest([score for own in scores.values() for score in own]), setup.work.steps
    number, names = len(scores[LEARNED]), tuple(layer.name for layer in setup.work.layers)
    drawn = [name for name in arms if name not in references(setup.work.method)]
    return Comparison(
        setup.seeds(COMPARE, number),
        tuple(
            Arm(
                name,
                steps,
                tuple(own),
                number * steps,
                spent if name == LEARNED else (),
                arms[name][0].name,
                worst,
            )
            for name, own in scores.items()
        ),
        (LEARNED,),
        tuple(Drawn(name, names, arms[name][1](progress(), setup.work.layers)) for name in drawn),
    )
