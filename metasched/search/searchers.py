"""Black-box searches over a box, from well-kept libraries: ask for a point, tell its score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from metasched.core.errors import MetaschedError

_SPREAD = 0.3  # standard deviation of CMA-ES's first generation, in half-widths of the box


class Searcher(Protocol):
    """Proposes points of [-1, 1]^n; the higher the score, the better. A function of its seed and of what it is told."""

    def ask(self) -> list[float]:
        """The next point to try."""
        ...

    def tell(self, score: float) -> None:
        """The score of the point last asked for."""
        ...


class _Optuna:
    """A sampler of Optuna, which is told of every point as soon as it has been tried."""

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
    """CMA-ES within bounds; its first point is ``first``, and its mean starts there."""

    def __init__(self, first: Sequence[float], seed: int) -> None:
        cma = _library("cma", "CMA-ES")
        # pycma takes 0 for "any seed", and no more than 32 bits
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
        if not self._asked:  # the first point is outside of any generation
            return
        self._scores.append(-score)
        if len(self._scores) == len(self._asked):
            self._strategy.tell(self._asked, self._scores)
            self._asked, self._scores = [], []


SEARCHERS: dict[str, Callable[[Sequence[float], int], Searcher]] = {
    "tpe": lambda first, seed: _Optuna(lambda samplers: samplers.TPESampler(seed=seed % 2**32), first),
    "random": lambda first, seed: _Optuna(lambda samplers: samplers.RandomSampler(seed=seed % 2**32), first),
    "cmaes": _Cma,
}
"""Name to searcher; its arguments are the first point to try, in [-1, 1]^n, and a seed."""


def _library(name: str, shown: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MetaschedError("tune.search", f"{shown} is not installed", "install metasched[tuning]") from error
