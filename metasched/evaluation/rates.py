"""The best of five learning rates for each arm: optimizer.lr times 1/4, 1/2, 1, 2 and 4.

Best is the highest mean hardened score on meta-validation; the test split is not read. All rates and arms meet the same
seeds. Of equal scores the rate nearest to optimizer.lr wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from metasched.config.schema import ProblemConfig
from metasched.evaluation.contenders import Contender
from metasched.evaluation.references import with_optimizer
from metasched.evaluation.statistics import counted, lowest, summarize
from metasched.evaluation.tuned_rate import TunedRate
from metasched.runs.cells import cell_scores, played, shares
from metasched.runs.pool import Mapper
from metasched.tracking.console import Console, watched
from metasched.tracking.tracker import Tracker
from metasched.training.optimizers.config import RATE_FACTORS, OptimizerConfig
from metasched.training.problem import build_problem, optimizer_of


def with_best_rates(
    arms: Mapping[str, Contender],
    seeds: Sequence[int],
    steps: int,
    pool: Mapper,
    tracker: Tracker | None,
    console: Console,
) -> dict[str, Contender]:
    """The arms, each with its best learning rate.

    Args:
        arms: at least one, by name; all of one task.
        seeds: of the inner runs of each rate of each arm.
        steps: of an inner run.
        pool: does the inner runs.
        tracker: receives the scores; None where it has them already, from a run that is resumed.
        console: where the chosen rates are shown.
    """
    runs = len(seeds)
    rated = {(name, by): _times(arm.problem, by) for name, arm in arms.items() for by in RATE_FACTORS}
    work = [
        (config, controls, part, steps, "validation")
        for (name, _), config in rated.items()
        for controls in [played(config, arms[name].schedule, steps)]
        for part in shares(config, seeds, pool)
    ]
    parts = watched(console, "runs to tune rates", pool.map(cell_scores, work), runs * len(rated))
    found = [score for part in parts for score in part]
    worst = build_problem(next(iter(arms.values())).problem).task.worst_score
    scores = counted(found, lowest(found) if worst is None else worst)
    means = {key: summarize(scores[i * runs : (i + 1) * runs]).mean for i, key in enumerate(rated)}
    best_of = {}
    for name, arm in arms.items():
        best = max(RATE_FACTORS, key=lambda by: means[name, by])  # the first of equal ones
        rates = {by: _optimizer(rated[name, by]).lr for by in RATE_FACTORS}
        tried = tuple(sorted((rates[by], means[name, by]) for by in RATE_FACTORS))
        rate = TunedRate(rates[best], tried, runs, len(RATE_FACTORS) * runs * steps)
        best_of[name] = Contender(rated[name, best], arm.schedule, rate)
        if tracker is not None:
            for lr, score in tried:
                tracker.log({"floors/name": name, "floors/lr": lr, "floors/score": score})
        end = ", the end of what was tried" if rate.at_the_end else ""
        console.note(
            f"{name}: learning rate {rate.lr:.3g}{end}, {rate.score:.4f} on meta-validation, best of {len(tried)} in "
            f"{len(tried) * runs} runs"
        )
    return best_of


def _optimizer(config: ProblemConfig) -> OptimizerConfig:
    return optimizer_of(config.optimizer, build_problem(config).task)


def _times(config: ProblemConfig, factor: float) -> ProblemConfig:
    """The problem with its learning rate times a factor; at 1 it is the same."""
    if factor == 1:
        return config
    optimizer = _optimizer(config)
    return with_optimizer(config, replace(optimizer, lr=factor * optimizer.lr))
