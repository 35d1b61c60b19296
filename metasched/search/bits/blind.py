"""Searches that know nothing of layers: all allocations, random ones, and Optuna's."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch

from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed, generator
from metasched.search.bits.problem import BitProblem, Judge
from metasched.search.config import AllocateConfig
from metasched.search.searchers import library


def exhaustive(problem: BitProblem, judge: Judge, settings: AllocateConfig, seed: int) -> None:
    """Every allocation that fits; ``seed`` has no effect.

    Args:
        problem, judge, settings, seed: see ``BitSearchSpec``.

    Raises:
        MetaschedError: there are more than ``allocate.evaluations``.
    """
    for choice in every(problem, settings):
        judge(choice)


def every(problem: BitProblem, settings: AllocateConfig) -> list[tuple[int, ...]]:
    """What ``exhaustive`` tries, and its check.

    Raises:
        MetaschedError: there is more than ``allocate.evaluations``.
    """
    found = [*islice(problem.feasible(), settings.evaluations + 1)]
    if len(found) > settings.evaluations:
        said = f"exhaustive has more to try than allocate.evaluations, {settings.evaluations}"
        raise MetaschedError("allocate.search", said, "raise that, allow fewer bits, or use another search")
    return found


def random(problem: BitProblem, judge: Judge, settings: AllocateConfig, seed: int) -> None:
    """Uniform allocations; where one exceeds the budget, layers in a random order give bits (``within``).

    Args:
        problem, judge, settings, seed: see ``BitSearchSpec``.
    """
    draws = generator(seed, "random bits")
    for _ in range(settings.evaluations):
        choice = torch.randint(len(problem.bits), (len(problem.layers),), generator=draws).tolist()
        order = torch.randperm(len(problem.layers), generator=draws).tolist()
        judge(problem.within(tuple(choice), order))


def tpe(problem: BitProblem, judge: Judge, settings: AllocateConfig, seed: int) -> None:
    """Optuna's tree-structured Parzen estimator over the choices of the layers, which give bits as in HAQ.

    A proposal that exceeds the budget is lowered (``within``), and the score of what it becomes is told for it. The
    first one is the most bits everywhere.

    Args:
        problem, judge, settings, seed: see ``BitSearchSpec``.

    Raises:
        MetaschedError: Optuna is not installed.
    """
    found = optuna(problem, settings)
    names = [f"x{i:03d}" for i in range(len(problem.layers))]
    box = {name: found.distributions.IntDistribution(0, len(problem.bits) - 1) for name in names}
    sampler = found.samplers.TPESampler(seed=derive_seed(seed, "tpe bits") % 2**32)
    study = found.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(dict(zip(names, problem.highest, strict=True)))
    for _ in range(settings.evaluations):
        trial = study.ask(box)
        score = judge(problem.within(tuple(trial.params[name] for name in names)))
        if score > float("-inf"):
            study.tell(trial, score)
        else:
            study.tell(trial, state=found.trial.TrialState.FAIL)


def optuna(problem: BitProblem, settings: AllocateConfig) -> Any:
    """Optuna, which logs warnings only, and the check of ``tpe``; the arguments have no effect.

    Raises:
        MetaschedError: it is not installed.
    """
    found = library("optuna", "Optuna", "allocate.search")
    found.logging.set_verbosity(found.logging.WARNING)
    return found
