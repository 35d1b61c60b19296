"""The ways a study learns: each proposes schedules, has them scored, and gives those that it would have judged again.

None needs a derivative. ``es`` is the outer loop of ``metasched train`` with evolution strategies; the searches are
those of ``metasched tune``. All but ``portfolio`` move the same numbers: smooth directions of a schedule network that
starts at the start (schedules/directions.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from pydantic import ValidationError

from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.layer import Layer
from metasched.core.randomness import derive_seed
from metasched.evaluation.statistics import counted, lowest, summarize
from metasched.exchange.player import PlayedSchedule, check_method, load
from metasched.exchange.shipped import learned_names
from metasched.meta.config import MetaConfig
from metasched.meta.guards import RunStopped
from metasched.meta.outer import OuterStep, meta_train
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.runs.local import Judged, Run
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.interpolation import Interpolation
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import HandCoded, schedules_of
from metasched.search.config import TuneConfig
from metasched.search.searchers import Searcher, ahead_of
from metasched.search.table import SEARCHES
from metasched.search.tuning import Box, Sampled
from metasched.study.population import Population
from metasched.study.work import LEARN, Work, in_stream, seed_of

HIDDEN = 32  # units of the schedule network


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
        fits: runs of the training function that it may take.
        start: where it starts.
        work: what is trained.
        learn: names of the controls that are moved.
        knots, directions: of the schedule network.
        seed: of the study.
        settings: its own, by name.
    """

    scores: Scores
    log: Callable[[str], None]
    fits: int
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


class _Shape(NamedTuple):
    """What evolution strategies ask of a problem."""

    steps: int
    network: Any


class _Network(NamedTuple):
    layers: tuple[Layer, ...]


class _Fits(NamedTuple):
    """The runs of an outer loop, done by the training function; it has values only."""

    learning: Learning
    meta: MetaConfig
    label: str = "fit"

    @property
    def problem(self) -> _Shape:
        return _Shape(self.learning.work.steps, _Network(self.learning.work.layers))

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        knots = progress_of_steps(self.learning.work.steps)
        played = [(Sampled(knots, dict(run.controls), "linear"), in_stream(run.seed, LEARN)) for run in runs]
        return [Judged(-score, score) for score in self.learning.scores(played)]


def _es(learning: Learning) -> list[Tried]:
    """The outer loop with evolution strategies: 2 x ``runs`` runs a step."""
    pairs = _setting(learning.settings, "runs", 4)
    own = {"steps": learning.fits // (2 * pairs), **learning.settings}
    meta = _section(MetaConfig, {"estimator": "es", **own})
    schedule = learning.network()

    def log(record: OuterStep) -> None:
        learning.log(f"step {record.step + 1}/{meta.steps}: {record.score:.4f}")

    try:
        meta_train(cast(Any, _Fits(learning, meta)), learning.seed, schedule, log)
    except RunStopped as error:
        fix = "lower the learning rate in fit, or the setting sigma"
        raise MetaschedError("es", "scores of three steps in a row are not finite", fix) from error
    return [_member("es", schedule, learning)]


def _searched(name: str) -> Callable[[Learning], list[Tried]]:
    """A search of the table, over the numbers of the schedule network."""

    def learn(learning: Learning) -> list[Tried]:
        builder = SEARCHES[name].builder
        assert builder is not None
        box = Box(learning.network(), learning.work.layers)
        return _search(learning, box, builder(box.first, derive_seed(learning.seed, "tune")), name)

    return learn


def _pbt(learning: Learning) -> list[Tried]:
    box = Box(learning.network(), learning.work.layers)
    size = _section(TuneConfig, {"population": _setting(learning.settings, "population", 10)}).population
    return _search(learning, box, Population(box.first, derive_seed(learning.seed, "tune"), size), "pbt")


def _search(learning: Learning, box: Box, searcher: Searcher, name: str) -> list[Tried]:
    runs, tried, seen = _setting(learning.settings, "runs", 2), list[Tried](), list[float]()
    total = learning.fits // runs
    while len(tried) < total:
        members = [box.member(searcher.ask()) for _ in range(min(ahead_of(searcher), total - len(tried)))]
        seeds = [
            [seed_of(learning.seed, LEARN, len(tried) + i, run) for run in range(runs)] for i in range(len(members))
        ]
        means = _means(learning, members, seeds, seen)
        for member, mean in zip(members, means, strict=True):
            searcher.tell(mean)
            tried.append(Tried(f"{name}_{len(tried) + 1}", member, member.knots, member.kind, mean))
        best = max(t.score for t in tried)
        learning.log(f"{len(tried)}/{total}: {means[-1]:.4f}, best of them {best:.4f}")
    return sorted(tried, key=lambda t: -t.score)


def _portfolio(learning: Learning) -> list[Tried]:
    """The shipped schedules of the method in their order, learned ones first, as far as the budget lasts."""
    runs, found, seen = _setting(learning.settings, "runs", 2), list[Tried](), list[float]()
    known = shipped(learning.work.method, learning.work.controls)
    total = min(len(known), learning.fits // runs)
    if total < len(known):
        learning.log(f"the budget is for {total} of {len(known)} schedules")
    for tried in known[:total]:
        seeds = [seed_of(learning.seed, LEARN, run) for run in range(runs)]  # the same for all
        (mean,) = _means(learning, [tried.schedule], [seeds], seen)
        found.append(tried._replace(score=mean))
        learning.log(f"{len(found)}/{total}: {tried.name} {mean:.4f}")
    return sorted(found, key=lambda t: -t.score)


def shipped(method: MethodConfig, controls: Sequence[Control]) -> list[Tried]:
    """The schedules of the package that a method can play: the learned ones, then the hand-coded ones."""
    found = []
    for name in learned_names(method.name):
        schedule = load(name)
        assert isinstance(schedule, PlayedSchedule)
        try:
            check_method(schedule.file, method.name, controls, name)
        except MetaschedError:  # of other parameters of the method, such as the parts of joint
            continue
        found.append(named(name, schedule, 25))
    return [*found, *(named(name, schedule, 25) for name, schedule in schedules_of(method).items())]


def named(name: str, schedule: Schedule, knots: int) -> Tried:
    """A schedule, with the knots that a file of it needs."""
    if isinstance(schedule, PlayedSchedule):
        return Tried(name, schedule, schedule.knots, schedule.file.interpolation)
    if isinstance(schedule, HandCoded):
        return Tried(name, schedule, schedule.knots(knots), schedule.interpolation)
    return Tried(name, schedule, getattr(schedule, "knots", progress_of_steps(knots)), "linear")


def _means(
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


def _member(name: str, schedule: ScheduleNetwork, learning: Learning) -> Tried:
    with torch.no_grad():
        values = {n: v.detach().clone() for n, v in schedule.at_knots(learning.work.layers).items()}
    return Tried(name, Sampled(schedule.knots, values, "linear"), schedule.knots, "linear")


def _setting(settings: dict[str, Any], name: str, default: int) -> int:
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MetaschedError(name, f"must be a number of runs, at least 1, got {value!r}", "correct it")
    return value


def _section(section: Any, fields: dict[str, Any]) -> Any:
    try:
        return section(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise MetaschedError(
            str(first["loc"][-1] if first["loc"] else "settings"), first["msg"], "correct it"
        ) from None


def find_learner(name: object) -> LearnerSpec:
    """The row of a learner; a search that was registered is one too.

    Raises:
        MetaschedError: none of that name.

    >>> find_learner("tpe").summary
    'tree-structured Parzen estimator'
    """
    searches = {
        row.name: LearnerSpec(row.name, row.summary, _searched(row.name), 3, ("runs",), lambda s: s.get("runs", 2))
        for row in SEARCHES.values()
        if row.builder is not None
    }
    known = {**searches, **LEARNERS}
    if not isinstance(name, str) or name not in known:
        raise unknown_name("learner", str(name), known)
    return known[name]


LEARNERS: dict[str, LearnerSpec] = {
    row.name: row
    for row in (
        LearnerSpec(
            "es", "evolution strategies", _es, 1, ("runs", "lr", "sigma", "clip"), lambda s: 2 * _setting(s, "runs", 4)
        ),
        LearnerSpec(
            "pbt",
            "population-based training of whole runs",
            _pbt,
            3,
            ("runs", "population"),
            lambda s: _setting(s, "runs", 2) * _setting(s, "population", 10),
        ),
        LearnerSpec(
            "portfolio",
            "the schedules of the package, in order",
            _portfolio,
            3,
            ("runs",),
            lambda s: _setting(s, "runs", 2),
        ),
    )
}
