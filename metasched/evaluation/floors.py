"""The learning rates of floors and ceiling, tuned with a budget of inner runs; a claim of a gain needs it.

A tuned learning rate is worth as much as a schedule. So each of the arms ``ste``, ``lsq`` and ``float`` gets the best
of five rates, optimizer.lr times 1/4, 1/2, 1, 2 and 4, by its mean hardened score on meta-validation after task.steps
steps. All rates and arms meet the same seeds, from a stream of their own; the test split is not read. Of equal scores
the rate nearest to the experiment's wins. The chosen rate is played at every horizon, as a learned schedule is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from metasched.config.schema import Experiment, ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.evaluation.comparison import REFERENCES, TunedRate
from metasched.evaluation.config import RATE_FACTORS
from metasched.evaluation.contenders import Contender
from metasched.evaluation.references import with_optimizer
from metasched.evaluation.statistics import counted, lowest, summarize
from metasched.exchange.player import spent_on
from metasched.runs.cells import cell_scores, played, shares
from metasched.runs.pool import Mapper
from metasched.tracking.console import Console
from metasched.tracking.tracker import Tracker
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem, optimizer_of


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
    runs, steps = runs_of_a_rate(experiment, arms), experiment.task.steps
    floors = {name: arms[name] for name in REFERENCES if name in arms}
    if not runs or not floors:
        return dict(arms)
    seeds = [derive_seed(experiment.seed, "tune floors", run) for run in range(runs)]
    rated = {(name, by): _times(arm.problem, by) for name, arm in floors.items() for by in RATE_FACTORS}
    work = [
        (config, controls, part, steps, "validation")
        for (name, _), config in rated.items()
        for controls in [played(config, floors[name].schedule, steps)]
        for part in shares(config, seeds, pool)
    ]
    found = [score for part in pool.map(cell_scores, work) for score in part]
    worst = build_problem(experiment.problem).task.worst_score
    scores = counted(found, lowest(found) if worst is None else worst)
    means = {key: summarize(scores[i * runs : (i + 1) * runs]).mean for i, key in enumerate(rated)}
    tuned = {}
    for name, arm in floors.items():
        best = max(RATE_FACTORS, key=lambda by: means[name, by])  # the first of equal ones
        rates = {by: _optimizer(rated[name, by]).lr for by in RATE_FACTORS}
        tried = tuple(sorted((rates[by], means[name, by]) for by in RATE_FACTORS))
        rate = TunedRate(rates[best], tried, runs, len(RATE_FACTORS) * runs * steps)
        tuned[name] = Contender(rated[name, best], arm.schedule, rate)
        for lr, score in tried:
            tracker.log({"floors/name": name, "floors/lr": lr, "floors/score": score})
        end = ", the end of what was tried" if rate.at_the_end else ""
        console.note(
            f"{name}: learning rate {rate.lr:.3g}{end}, {rate.score:.4f} on meta-validation, best of {len(tried)} in "
            f"{len(tried) * runs} runs"
        )
    return {**arms, **tuned}


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


def _optimizer(config: ProblemConfig) -> OptimizerConfig:
    return optimizer_of(config.optimizer, build_problem(config).task)


def _times(config: ProblemConfig, factor: float) -> ProblemConfig:
    """The problem with its learning rate times a factor; at 1 it is the same."""
    if factor == 1:
        return config
    optimizer = _optimizer(config)
    return with_optimizer(config, replace(optimizer, lr=factor * optimizer.lr))
