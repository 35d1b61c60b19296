"""Meta-training of a whole experiment, as tests ask for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from metasched.commands.check import small
from metasched.config.schema import Experiment
from metasched.meta.outer import MetaTraining, OuterState, OuterStep, meta_train
from metasched.runs.pool import Mapper
from metasched.runs.pooled import PooledRuns


def runs_of(experiment: Experiment, pool: Mapper) -> PooledRuns:
    """The inner runs of an experiment on a pool."""
    return PooledRuns(experiment.problem, experiment.meta, pool)


def learn(
    experiment: Experiment,
    schedule: Any,
    pool: Mapper,
    log: Callable[[OuterStep], Any] = lambda record: None,
    since: OuterState | None = None,
    save: Callable[[OuterState], Any] | None = None,
) -> MetaTraining:
    """``meta_train`` of an experiment."""
    return meta_train(runs_of(experiment, pool), experiment.seed, schedule, log, since, save)


def shrunk(experiment: Experiment) -> Experiment:
    """The experiment at the size at which ``metasched check`` looks at it."""
    tiny = small(experiment.problem)
    return replace(experiment, task=tiny.task, run=replace(experiment.run, dtype=tiny.dtype, autocast=tiny.autocast))
