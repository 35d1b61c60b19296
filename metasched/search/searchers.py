"""Black-box searches over a box, from maintained libraries: ask for a point, tell its score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from metasched.core.errors import MetaschedError

_SPREAD = 0.3  # standard deviation of CMA-ES's first generation, in half-widths of the box


class Searcher(Protocol):
    """Proposes points of [-1, 1]^n; higher scores are better. Deterministic in its seed and the scores."""

    def ask(self) -> list[float]:
        """The next point to try."""
        ...

    def tell(self, score: float) -> None:
        """Reports the score of the last point."""
        ...


class _Optuna:
    """A sampler of Optuna."""

    def __init__(self, sampler: Callable[[Any], Any], first: Sequence[float]) -> None:
        optuna = _library("optuna", "Optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        names = [f"x{i:02d}" for i in range(len(first))]
        self._box = {name: optuna.distributions.FloatDistribution(-1, 1) for name in names}
        self._study = optuna.create_study(direction="maximize", sampler=sampler(optuna.samplers))
        self._study.enqueue_trial(dict(zip(names, first, strict=True)))

    def ask(self) -> list[float]:
        self._trial = self._study.ask(self._box)
        return [self._trial.params[name] for name in self._box]

    def tell(self, score: float) -> None:
        self._study.tell(self._trial, score)


class _Cma:
    """CMA-ES within bounds; ``first`` is the first point and the initial mean."""

    def __init__(self, first: Sequence[float], seed: int) -> None:
        cma = _library("cma", "CMA-ES")
        # pycma reads 0 as "random seed" and accepts at most 32 bits
        options = {"seed": seed % (2**32 - 1) + 1, "bounds": [-1, 1], "verbose": -9}
        self._strategy = cma.CMAEvolutionStrategy(list(first), _SPREAD, options)
        self._asked: list[list[float]] = []
        self._scores: list[float] = []
        self._waiting = [list(first)]

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
    return _Optuna(lambda samplers: samplers.RandomSampler(seed=seed % 2**32), first)


def cmaes(first: Sequence[float], seed: int) -> Searcher:
    """CMA-ES within [-1, 1]^n, whose initial mean is the first point."""
    return _Cma(first, seed)


def _library(name: str, shown: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MetaschedError("tune.search", f"{shown} is not installed", "pip install 'metasched[tuning]'") from error
