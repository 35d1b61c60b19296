"""Searches as learners: those of ``metasched tune``, and a population, over the numbers of the schedule network."""

from __future__ import annotations

from collections.abc import Callable

from metasched.core.randomness import derive_seed
from metasched.search.config import TuneConfig
from metasched.search.searchers import Searcher, ahead_of
from metasched.search.table import SEARCHES
from metasched.search.tuning import Box
from metasched.study.learning import REPEATS, Learning, Tried, mean_scores, section, setting
from metasched.study.population import Population
from metasched.study.work import LEARN, seed_of

POPULATION = 10


def searched(name: str) -> Callable[[Learning], list[Tried]]:
    """The learner that is a search of the table."""

    def learn(learning: Learning) -> list[Tried]:
        builder = SEARCHES[name].builder
        assert builder is not None
        box = Box(learning.network(), learning.work.layers)
        return _search(learning, box, builder(box.first, derive_seed(learning.seed, "tune")), name)

    return learn


def pbt(learning: Learning) -> list[Tried]:
    """A population of whole runs; see population.py."""
    box = Box(learning.network(), learning.work.layers)
    size = section(TuneConfig, {"population": setting(learning.settings, "population", POPULATION)}).population
    return _search(learning, box, Population(box.first, derive_seed(learning.seed, "tune"), size), "pbt")


def _search(learning: Learning, box: Box, searcher: Searcher, name: str) -> list[Tried]:
    repeats, tried, seen = setting(learning.settings, "repeats", REPEATS), list[Tried](), list[float]()
    total = learning.runs // repeats
    while len(tried) < total:
        members = [box.member(searcher.ask()) for _ in range(min(ahead_of(searcher), total - len(tried)))]
        seeds = [
            [seed_of(learning.seed, LEARN, len(tried) + i, run) for run in range(repeats)] for i in range(len(members))
        ]
        means = mean_scores(learning, members, seeds, seen)
        for member, mean in zip(members, means, strict=True):
            searcher.tell(mean)
            tried.append(Tried(f"{name}_{len(tried) + 1}", member, member.knots, member.kind, mean))
        best = max(t.score for t in tried)
        learning.log(f"{len(tried)}/{total}: {means[-1]:.4f}, best of them {best:.4f}")
    return sorted(tried, key=lambda t: -t.score)
