"""Meta-training where the plain unroll explodes: what `meta.estimator: auto` makes of it, and what `sweep` does.

    python scripts/benchmarks/auto_estimator.py --json experiments/results/auto_estimator.json

ANA with the expectation forward and its own backward on digits: noise narrows to almost nothing over the run. Both
estimators start at the same hand-coded schedule, and learn the noise as a member of a family of windows. Then the
learned schedule and its start train networks from fresh paired seeds, and the hardened networks are scored on the test
split.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.estimators.auto import summary
from metasched.evaluation.config import CompareConfig
from metasched.evaluation.contenders import fresh_seeds
from metasched.evaluation.statistics import paired_difference, summarize
from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment
from metasched.io.json_text import json_text
from metasched.meta.config import MetaConfig
from metasched.meta.outer import OuterStep, meta_train
from metasched.methods.config import MethodConfig
from metasched.runs.cells import cell_score, played
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.runs.pooled import PooledRuns
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.learnable import LearnableSchedule, build_learnable
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem

START = "ana_linear"
EXPERIMENT = Experiment(
    name="auto_estimator",
    seed=7,
    task=TaskConfig(name="digits", model="mlp", width=32, steps=60),
    optimizer=OptimizerConfig(name="adam", lr=0.02),
    method=MethodConfig(name="ana", forward="expectation", backward="noise"),
    schedule=ScheduleConfig(kind="family", start=START, learn=("weight_noise", "activation_noise")),
    meta=MetaConfig(estimator="auto", steps=60, runs=4, noise_floor=0.02),
    compare=CompareConfig(seeds=16),
    run=RunConfig(workers=1),
)


class Learned(NamedTuple):
    """A schedule, what each outer step of learning it did, and the error that ended it, if one did."""

    schedule: LearnableSchedule
    history: list[OuterStep]
    error: str | None


def learn(experiment: Experiment, pool: Pool) -> Learned:
    """Meta-train from the start, with a line for each outer step."""
    network = build_problem(experiment.problem).network
    schedule = build_learnable(
        experiment.schedule,
        network.method.controls,
        hand_coded(experiment.method.name)[START],
        experiment.schedule.learn or (),
        network.layers,
        derive_seed(experiment.seed, "schedule network"),
    )

    history: list[OuterStep] = []

    def log(record: OuterStep) -> None:
        history.append(record)
        text = f"loss {record.loss:.3f} |g| {record.gradient_norm:.1e} {record.seconds:.0f} s {record.line or ''}"
        print(
            f"{experiment.meta.estimator} {record.step + 1}/{experiment.meta.steps} {text}", file=sys.stderr, flush=True
        )

    try:
        runs = PooledRuns(experiment.problem, experiment.meta, pool)
        meta_train(runs, experiment.seed, schedule, log)  # moves the schedule in place
    except MetaschedError as error:
        return Learned(schedule, history, str(error))
    return Learned(schedule, history, None)


def in_short(outcome: Learned) -> dict[str, Any]:
    """What became of the gradients in meta-training."""
    history = outcome.history
    norms = [r.gradient_norm for r in history]
    finite = [n for n in norms if math.isfinite(n)]
    numbers = torch.cat([p.detach().flatten() for p in outcome.schedule.parameters()])
    return {
        "outer_steps": len(history),
        "error": outcome.error,
        "inner_steps": sum(r.inner_steps for r in history),
        "seconds": sum(r.seconds for r in history),
        "norm": {"median": statistics.median(finite), "high": max(finite)} if finite else None,
        "steps_without_a_finite_norm": len(norms) - len(finite),
        "skipped": sum(r.skipped for r in history),
        "nonfinite": sum(r.nonfinite for r in history),
        "clipped": sum(r.clipped for r in history),
        "schedule_is_finite": bool(numbers.isfinite().all()),
        "losses": [r.loss for r in history],
        "norms": norms,
        "lines": [r.line for r in history if r.line],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Learn with both estimators, compare, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--steps", type=int, default=EXPERIMENT.meta.steps, help="outer steps of auto [60]")
    parser.add_argument("--contrast", type=int, default=5, help="outer steps of sweep [5]")
    parser.add_argument("--seeds", type=int, default=EXPERIMENT.compare.seeds, help="paired seeds [16]")
    parser.add_argument("--seed", type=int, default=EXPERIMENT.seed, help=f"of everything [{EXPERIMENT.seed}]")
    parser.add_argument("--part", choices=["validation", "test"], default="test", help="split that is scored [test]")
    arguments = parser.parse_args(argv)
    experiment = replace(
        EXPERIMENT,
        seed=arguments.seed,
        meta=replace(EXPERIMENT.meta, steps=arguments.steps),
        compare=replace(EXPERIMENT.compare, seeds=arguments.seeds),
    )
    plain = replace(experiment, meta=replace(experiment.meta, estimator="sweep", steps=arguments.contrast))
    start, steps = time.perf_counter(), experiment.task.steps
    seeds = fresh_seeds(experiment.seed, experiment.compare.seeds)
    with Pool(experiment.run.workers) as pool:
        learned, exploded = learn(experiment, pool), learn(plain, pool)
        arms = {"learned": learned.schedule, "start": hand_coded(experiment.method.name)[START]}
        scores = {
            name: [
                cell_score(experiment.problem, played(experiment.problem, arm, steps), s, steps, arguments.part)
                for s in seeds
            ]
            for name, arm in arms.items()
        }
    result = {
        "command": " ".join(["python", *sys.argv]),
        "environment": environment(),
        "cpu": cpu_model(),
        "seconds": time.perf_counter() - start,
        "experiment": asdict(experiment),
        "auto": {**in_short(learned), "estimator": summary([r.notes for r in learned.history])},
        "sweep": in_short(exploded),
        "part": arguments.part,
        "scores": {name: {**summarize(s)._asdict(), "scores": s} for name, s in scores.items()},
        "learned_minus_start": paired_difference(scores["learned"], scores["start"])._asdict(),
    }
    write_atomic(arguments.json, json_text(result, indent=1).encode() + b"\n")
    print(json_text(result["learned_minus_start"]), file=sys.stderr)


if __name__ == "__main__":
    main()
