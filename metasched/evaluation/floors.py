"""The learning rates of floors and ceiling, tuned with a budget of inner runs; a claim of a gain needs it.

A tuned learning rate is worth as much as a schedule. So each of the arms ``ste``, ``lsq`` and ``float`` gets the best
of five (rates.py), on seeds from a stream of their own. The chosen rate is played at every horizon, as a learned
schedule is.
"""

from __future__ import annotations

from collections.abc import Mapping

from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.evaluation.comparison import REFERENCES
from metasched.evaluation.contenders import Contender
from metasched.evaluation.rates import with_best_rates
from metasched.exchange.player import spent_on
from metasched.runs.pool import Mapper
from metasched.tracking.console import Console
from metasched.tracking.tracker import Tracker
from metasched.training.optimizers.config import RATE_FACTORS


def with_tuned_rates(
    experiment: Experiment, arms: Mapping[str, Contender], pool: Mapper, tracker: Tracker, console: Console
) -> dict[str, Contender]:
    """The arms, with the tuned learning rates of floors and ceiling if ``compare.tune_floors`` asks for them.

    Args:
        experiment: budget, seed and horizon.
        arms: of the comparison, by name.
        pool: does the inner runs.
        tracker, console: receive the scores.

    Raises:
        MetaschedError: as many runs as learning took are asked for, and no arm says what it took.
    """
    runs = runs_of_a_rate(experiment, arms)
    floors = {name: arms[name] for name in REFERENCES if name in arms}
    if not runs or not floors:
        return dict(arms)
    seeds = [derive_seed(experiment.seed, "tune floors", run) for run in range(runs)]
    return {**arms, **with_best_rates(floors, seeds, experiment.task.steps, pool, tracker, console)}


def runs_of_a_rate(experiment: Experiment, arms: Mapping[str, Contender]) -> int:
    """Inner runs of each rate of an arm, 0 for no tuning.

    Raises:
        MetaschedError: as many as learning took are asked for, and no arm says what it took.
    """
    asked: int | str = experiment.compare.tune_floors
    if asked == "as_learned":
        spent = max(sum(entry.inner_steps for entry in spent_on(arm.schedule)) for arm in arms.values())
        if not spent:
            problem = "as_learned has no number to go by: no compared schedule says what finding it took"
            raise MetaschedError("compare.tune_floors", problem, "give a number of inner runs, or 0")
        asked = max(len(RATE_FACTORS), spent // experiment.task.steps)
    return round(int(asked) / len(RATE_FACTORS))
