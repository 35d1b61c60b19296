"""Black-box searches over a box, from maintained libraries: ask for a point, tell its score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from metasched.core.errors import MetaschedError

_RANDOM_AHEAD = 8  # points of random search that may be scored at once
_SPREAD = 0.3  # standard deviation of CMA-ES's first generation, in half-widths of the box


class Searcher(Protocol):
    """Proposes points of [-1, 1]^n; higher scores are better. Deterministic in its seed and the scores.

    One that proposes several points before it needs a score says how many in an attribute ``ahead`` (``ahead_of``).
    Scores are told in the order of the points. One that can make use of the score of a point that it did not propose
    has a method ``know`` (``known_to``).
    """

    def ask(self) -> list[float]:
        """The next point to try."""
        ...

    def tell(self, score: float) -> None:
        """Reports the score of the last point."""
        ...


def ahead_of(searcher: Searcher) -> int:
    """How many points a searcher proposes now before it needs the first of their scores."""
    return getattr(searcher, "ahead", 1)


def known_to(searcher: Searcher, point: Sequence[float], score: float) -> bool:
    """Tells a searcher the score of a point of others, if it can make use of it; whether it can."""
    know = getattr(searcher, "know", None)
    if know is not None:
        know(list(point), score)
    return know is not None


class _Optuna:
    """A sampler of Optuna."""

    def __init__(self, sampler: Callable[[Any], Any], first: Sequence[float], ahead: int = 1) -> None:
        optuna = library("optuna", "Optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        names = [f"x{i:02d}" for i in range(len(first))]
        self._box = {name: optuna.distributions.FloatDistribution(-1, 1) for name in names}
        self._study = optuna.create_study(direction="maximize", sampler=sampler(optuna.samplers))
        self._study.enqueue_trial(dict(zip(names, first, strict=True)))
        self._trials: list[Any] = []
        self.ahead = ahead

    def ask(self) -> list[float]:
        self._trials.append(self._study.ask(self._box))
        return [self._trials[-1].params[name] for name in self._box]

    def tell(self, score: float) -> None:
        self._study.tell(self._trials.pop(0), score)

    def know(self, point: list[float], score: float) -> None:
        optuna = library("optuna", "Optuna")
        named = dict(zip(self._box, point, strict=True))
        self._study.add_trial(optuna.trial.create_trial(params=named, distributions=self._box, value=score))


class _Cma:
    """CMA-ES within bounds; ``first`` is the first point and the initial mean."""

    def __init__(self, first: Sequence[float], seed: int) -> None:
        # pycma reads 0 as "random seed" and accepts at most 32 bits
        self._options = {"seed": seed % (2**32 - 1) + 1, "bounds": [-1, 1], "verbose": -9}
        self._strategy = self._around(first)
        self._best = -math.inf
        self._asked: list[list[float]] = []
        self._scores: list[float] = []
        self._waiting = [list(first)]

    def _around(self, mean: Sequence[float]) -> Any:
        return library("cma", "CMA-ES").CMAEvolutionStrategy(list(mean), _SPREAD, dict(self._options))

    def know(self, point: list[float], score: float) -> None:
        """Before the first generation, the best point becomes its mean."""
        if score > self._best and not self._asked:
            self._best, self._strategy = score, self._around(point)

    @property
    def ahead(self) -> int:
        """What is left of a generation, or a whole one."""
        return len(self._waiting) or self._strategy.popsize

    def ask(self) -> list[float]:
        if not self._waiting:
            self._asked = [point.tolist() for point in self._strategy.ask()]
            self._waiting = list(self._asked)
        return self._waiting.pop(0)

    def tell(self, score: float) -> None:
        if not self._asked:  # the first point belongs to no generation
            return
        self._scores.append(-score)
        if len(self._scores) == len(self._asked):
            self._strategy.tell(self._asked, self._scores)
            self._asked, self._scores = [], []


def tpe(first: Sequence[float], seed: int) -> Searcher:
    """Optuna's tree-structured Parzen estimator, from a first point in [-1, 1]^n.

    Raises:
        MetaschedError: the library is not installed, as for the others.
    """
    return _Optuna(lambda samplers: samplers.TPESampler(seed=seed % 2**32), first)


def random(first: Sequence[float], seed: int) -> Searcher:
    """The first point in [-1, 1]^n, then uniform ones."""
    return _Optuna(lambda samplers: samplers.RandomSampler(seed=seed % 2**32), first, ahead=_RANDOM_AHEAD)


def cmaes(first: Sequence[float], seed: int) -> Searcher:
    """CMA-ES within [-1, 1]^n, whose initial mean is the first point."""
    return _Cma(first, seed)


def library(name: str, shown: str, path: str = "tune.search") -> Any:
    """A library of the extra ``tuning``.

    Raises:
        MetaschedError: it is not installed; ``path`` is the setting that needs it.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MetaschedError(path, f"{shown} is not installed", "pip install 'metasched[tuning]'") from error
