"""The learning rate that learning starts with, tuned at the schedule that it starts at."""

from __future__ import annotations

from dataclasses import replace

from metasched.config.schema import Experiment
from metasched.core.randomness import derive_seed
from metasched.evaluation.contenders import Contender
from metasched.evaluation.rates import with_best_rates
from metasched.evaluation.tuned_rate import TunedRate
from metasched.runs.pool import Mapper
from metasched.schedules.base import Schedule
from metasched.schedules.table import NO_SCHEDULE, floor_of
from metasched.tracking.console import Console
from metasched.tracking.tracker import Tracker
from metasched.training.optimizers.config import RATE_FACTORS


def with_best_rate(
    experiment: Experiment, given: tuple[str, Schedule] | None, pool: Mapper, tracker: Tracker | None, console: Console
) -> tuple[Experiment, TunedRate | None]:
    """The experiment with the best learning rate of the schedule that learning starts at, and how it was chosen.

    The rate is the best of five by ``meta.tune_lr`` runs in all, on seeds from a stream of their own (see
    evaluation/rates.py). What is learned, and each arm of the comparison, starts from it. With ``meta.tune_lr`` 0 the
    experiment stays as it is.

    Args:
        experiment: budget, seed and horizon.
        given: name and schedule of the start; None, for ``best``: the rate of the floor is tuned.
        pool: does the inner runs.
        tracker: receives the scores; None where it has them already, from a run that is resumed.
        console: where the chosen rate is shown.

    Raises:
        MetaschedError: ``best``, and the method has no floor.
    """
    runs = round(experiment.meta.tune_lr / len(RATE_FACTORS))
    if not runs:
        return experiment, None
    name, schedule = given or (NO_SCHEDULE, floor_of(experiment.method, "schedule.start"))
    seeds = [derive_seed(experiment.seed, "tune rate", run) for run in range(runs)]
    arm = {name: Contender(experiment.problem, schedule)}
    best = with_best_rates(arm, seeds, experiment.task.steps, pool, tracker, console)[name]
    return replace(experiment, optimizer=best.problem.optimizer), best.tuned
