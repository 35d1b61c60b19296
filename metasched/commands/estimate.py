"""What a command will take, said before it begins: the training runs of each part, and about how long they take.

The time is that of a few training steps, measured once, times the steps of all runs, shared by the processes. A
hypergradient goes back through its run as well, which takes 3.5 times as long as the run again (docs/hypergradients.md:
4.5 times plain training with every state stored); evolution strategies play two runs for each pair. What an estimate
leaves out: the start of processes, searches for bits, and runs that are in the folder already.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from metasched.config.schema import Experiment, ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.estimators.guided import FEWER
from metasched.estimators.table import ESTIMATORS, REVERSE
from metasched.evaluation.comparison import REFERENCES
from metasched.evaluation.contenders import Contender
from metasched.network.flat import Tensors
from metasched.runs.cells import played
from metasched.runs.pool import Mapper
from metasched.schedules.table import has_floor, schedules_of
from metasched.tracking.console import Console, duration
from metasched.training.loop import hardened_score, train
from metasched.training.optimizers.config import RATE_FACTORS
from metasched.training.problem import build_problem

_BACK = 4.5  # a run with its hypergradient, in runs
_PAIR = 2.0
_FEW, _MORE = 1, 6  # steps that are timed: the difference has no start-up in it


def runs_of_train(experiment: Experiment, arms: int) -> dict[str, float]:
    """Training runs of ``metasched train`` by purpose; runs at longer horizons count as several.

    Args:
        experiment: the whole configuration.
        arms: of the comparison.
    """
    meta, steps, floors = experiment.meta, experiment.task.steps, experiment.compare.tune_floors
    pairs, exact = _runs_of_estimate(meta.estimator, meta.runs)
    before = {
        **_runs_of_start(experiment),
        "tune the learning rate": meta.tune_lr,
        "search": meta.search_steps / steps,
        "learn": meta.steps * (pairs + exact),  # one that is differentiated is played once, as ``spent`` counts it
        "confirm": 2 * meta.confirm_runs,
    }
    if floors == "as_learned":
        floors = sum(before.values())
    before["learn"] = meta.steps * (pairs + _BACK * exact)
    return {**before, **runs_of_compare(experiment, arms, round(int(floors) / len(RATE_FACTORS)))}


def _runs_of_estimate(estimator: str, runs: int) -> tuple[float, float]:
    """Runs of one outer step: those played in pairs, and those that are differentiated."""
    reads = ESTIMATORS[estimator].reads
    pairs = _PAIR * runs * ("sigma" in reads)
    guides = max(1, runs // FEWER) if estimator == "guided" else runs
    return pairs, guides * (bool({*REVERSE} & {*reads}))


def runs_of_tune(experiment: Experiment, arms: int) -> dict[str, float]:
    """Training runs of ``metasched tune`` by purpose; arguments as for ``runs_of_train``."""
    steps, floors = experiment.task.steps, experiment.compare.tune_floors
    budget = experiment.tune.inner_steps / steps
    each = round((budget if floors == "as_learned" else int(floors)) / len(RATE_FACTORS))
    return {**_runs_of_start(experiment), "search": budget, **runs_of_compare(experiment, arms, each)}


def _runs_of_start(experiment: Experiment) -> dict[str, float]:
    candidates = len(schedules_of(experiment.method)) + has_floor(experiment.method)
    return {"choose the start": candidates * experiment.meta.select_runs * (experiment.schedule.start == "best")}


def runs_of_compare(experiment: Experiment, arms: int, of_a_rate: int) -> dict[str, float]:
    """Training runs of a comparison by purpose: of so many arms, with so many runs of each rate of a floor."""
    settings = experiment.compare
    return {
        "tune floors": len(REFERENCES) * len(RATE_FACTORS) * of_a_rate,
        "compare": arms * settings.seeds * sum(settings.horizons),
    }


def timed_arm(experiment: Experiment, arms: Mapping[str, Contender]) -> Contender:
    """An arm of the experiment's own method, or else any."""
    own = (arm for arm in arms.values() if arm.problem.method.name == experiment.method.name)
    return next(own, next(iter(arms.values())))


def announce(runs: Mapping[str, float], arm: Contender, pool: Mapper, console: Console) -> None:
    """Says what will be done, and about how long it takes.

    Args:
        runs: by purpose; those of 0 are left out.
        arm: is timed.
        pool: where the work will run.
        console: where it is said.
    """
    steps, total = arm.problem.task.steps, sum(runs.values())
    parts = ", ".join(f"{count:,.0f} to {purpose}" for purpose, count in runs.items() if count)
    try:
        values = [played(arm.problem, arm.schedule, n) for n in (_FEW, _MORE)]
        (seconds,) = pool.map(_seconds_of_run, [(arm.problem, *values, (_FEW, _MORE), steps)])
        on = f"{pool.workers} processes" if pool.workers > 1 else "one process"
        about = f"about {duration(seconds * total / pool.workers)} on {on}"
    except MetaschedError:  # it will be said where the work is done
        about = "of unknown length"
    console.note(f"plan: the work of {total:,.0f} training runs of {steps} steps, {about}: {parts}")


def _seconds_of_run(config: ProblemConfig, few: Tensors, more: Tensors, counts: tuple[int, int], steps: int) -> float:
    """About how long a training run takes, from two short ones of so many steps under {control: [T, L]}."""

    def timed(values: Tensors, n: int) -> float:
        began = time.perf_counter()
        problem = build_problem(config, steps=n)
        like = next(problem.network.module.parameters())
        run = train(problem, {name: v.to(like) for name, v in values.items()})
        hardened_score(problem, run.state, "validation")
        return time.perf_counter() - began

    timed(few, counts[0])  # loads what is loaded once
    once, then = timed(few, counts[0]), timed(more, counts[1])
    return once + max(0.0, then - once) / (counts[1] - counts[0]) * (steps - counts[0])
