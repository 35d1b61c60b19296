r"""Measures the cost of a hypergradient in plain training runs, to give a search the same compute.

    python scripts/hypergradient_cost.py experiments/digits_inq_family.yaml
    python scripts/hypergradient_cost.py experiments/fashion_inq_family.yaml --json OUT.json --task.root DATA

The run and the hypergradient have the experiment's estimator, memory budget and objective, at its initial schedule
(with `best`, at the first hand-coded schedule). One thread. After a warm-up, a run and a hypergradient alternate; each
ratio is that of two neighbours. Times are CPU times of this process, which depend little on other work on the machine;
on other devices, wall times.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from metasched import load_experiment
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.engines import UNROLLS
from metasched.estimators import ESTIMATORS
from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment
from metasched.io.json_text import json_text
from metasched.meta.start import given_start
from metasched.runs.cells import played
from metasched.runs.local import Run
from metasched.runs.pooled import local_runs
from metasched.schedules.table import hand_coded
from metasched.training.loop import train
from metasched.training.problem import build_problem


def ratios(experiment: Experiment, repeats: int) -> dict[str, Any]:
    """Seconds of plain runs and of hypergradients, and their ratios."""
    problem, runs = build_problem(experiment.problem), local_runs(experiment.problem, experiment.meta)
    given = given_start(experiment.problem, experiment.schedule.start)
    start = given[1] if given else next(iter(hand_coded(experiment.method.name).values()))
    controls = played(experiment.problem, start, experiment.task.steps)
    plain, gradient = [], []
    for seed in range(repeats + 1):
        plain.append(_seconds(lambda seed=seed: train(problem.with_seed(seed), controls), experiment.run.device))
        gradient.append(_seconds(lambda seed=seed: runs.gradients([Run(controls, seed)]), experiment.run.device))
    found = [g / p for g, p in zip(gradient, plain, strict=True)][1:]
    return {
        "experiment": experiment.name,
        "estimator": experiment.meta.estimator,
        "steps": experiment.task.steps,
        "n": repeats,
        "plain_seconds": statistics.median(plain[1:]),
        "hypergradient_seconds": statistics.median(gradient[1:]),
        "ratio": {"median": statistics.median(found), "low": min(found), "high": max(found)},
    }


def _seconds(work: Callable[[], Any], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    before = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - before


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, say it in a line, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments, overrides = parser.parse_known_args(argv)  # the rest are fields of the experiment
    torch.set_num_threads(1)
    if arguments.repeats < 1:
        parser.error(f"--repeats {arguments.repeats} measures nothing: give at least 1")
    try:
        experiment = load_experiment(arguments.experiment, overrides)
    except MetaschedError as error:
        parser.error(str(error))
    reads = ESTIMATORS[experiment.meta.estimator].reads
    if "memory" not in reads and experiment.meta.estimator not in UNROLLS:
        parser.error(f"meta.estimator {experiment.meta.estimator} does not go back through training")
    found = ratios(experiment, arguments.repeats)
    ratio = found["ratio"]
    print(
        f"{experiment.name}: a hypergradient by {experiment.meta.estimator} costs {ratio['median']:.2f} plain runs "
        f"({ratio['low']:.2f} to {ratio['high']:.2f}, n = {found['n']})"
    )
    if arguments.json:
        command = " ".join(["python", *sys.argv])
        result = {**found, "command": command, "environment": environment(), "cpu": cpu_model()}
        write_atomic(arguments.json, json_text(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
