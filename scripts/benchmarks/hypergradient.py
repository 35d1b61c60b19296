r"""What a hypergradient costs: CPU time and memory of each engine, which all give the same numbers.

    python scripts/benchmarks/hypergradient.py --json experiments/results/hypergradient_engines.json

Every measurement has a process of its own with one thread, MALLOC_MMAP_THRESHOLD_=65536 (so that freed memory goes
back to the system) and a warm-up of three steps on two examples; the engines alternate. Seconds are process time,
with the one step that the sweep takes to measure its graph; bytes are how far the largest resident size rises above
that after the warm-up. Inputs are random, and the noise stays about half a quantum.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from metasched.config import MethodConfig, OptimizerConfig
from metasched.files import cpu_model, environment, json_text, write_atomic
from metasched.hypergradients import find_unroll
from metasched.hypergradients.base import OuterLoss, Unroll, control_gradient
from metasched.hypergradients.memory import Plan, predicted_bytes
from metasched.hypergradients.sweep import cost, sweep
from metasched.methods import build_method
from metasched.models import build_model
from metasched.network import Tensors, quantize
from metasched.randomness import generator
from metasched.tasks.base import Split, Task
from metasched.training.loop import train
from metasched.training.optimizers import recipe
from metasched.training.step import InnerProblem

AGREEMENT = 1e-4  # relative, at T = 10 in float32; ours and `higher` sum in another order
OUTER = OuterLoss()


class Workload(NamedTuple):
    """What is trained: a network of the table on random images."""

    model: str
    width: int
    image: tuple[int, int, int]
    batch: int


WORKLOADS = {
    "convnet": Workload("convnet", 8, (1, 28, 28), 64),
    "resnet20": Workload("resnet20", 16, (3, 32, 32), 32),
}
CASES = [
    *(("convnet", optimizer, steps) for optimizer in ("adam", "sgd") for steps in (10, 50, 100, 300)),
    *(("resnet20", "sgd", steps) for steps in (10, 30)),
]
QUICK = [("convnet", "adam", 10)]


def _sweep_within(share: float, problem: InnerProblem, controls: Tensors) -> Unroll:
    """A sweep with a share of the bytes that keep the graph of every step, at least those that store every state."""
    state, graph, judgement = cost(problem, controls, OUTER)
    every_state, everything = (
        predicted_bytes(Plan((1,), kept), problem.steps, state, graph) for kept in (1, problem.steps)
    )
    return find_unroll("sweep", max(int(share * everything), every_state) + judgement)


ENGINES: dict[str, Callable[[InnerProblem, Tensors], Unroll] | None] = {  # None: training without a hypergradient
    "plain": None,
    "sweep": lambda problem, controls: find_unroll("sweep"),
    "sweep, every state": lambda problem, controls: partial(sweep, plan=Plan((1,), 1)),
    "sweep, 1/4": partial(_sweep_within, 0.25),
    "sweep, 1/2": partial(_sweep_within, 0.5),
    "sweep, everything": partial(_sweep_within, 1.0),
    "higher": lambda problem, controls: find_unroll("higher"),
    "unroll": lambda problem, controls: find_unroll("unroll"),
}


def case(workload: str, optimizer: str, steps: int) -> tuple[InnerProblem, Tensors]:
    """The inner problem of a case, and its controls."""
    model, width, image, batch = WORKLOADS[workload]
    draws = generator(0, "benchmark")

    def split(n: int) -> Split:
        return Split(torch.randn(n, *image, generator=draws), torch.randint(10, (n,), generator=draws))

    def build() -> torch.nn.Module:
        return build_model(model, image, 10, width)

    task = Task("random", split(1024), split(batch), split(2), build, F.cross_entropy, F.cross_entropy, batch)
    method = build_method(MethodConfig(name="ana", forward="expectation", noise="triangular"))
    rule, hyper = recipe(OptimizerConfig(name=optimizer, lr=0.01))  # type: ignore[arg-type]
    torch.manual_seed(0)
    problem = InnerProblem(quantize(build(), method, task.train.x[:2]), task, rule, hyper, steps, seed=0)
    shape = (steps, len(problem.network.layers))
    scale = 0.5 + 0.05 * torch.rand(shape, generator=draws)
    return problem, {"noise_scale": scale, "noise_mean": torch.zeros(shape)}


def measure(engine: str, workload: str, optimizer: str, steps: int) -> dict[str, float]:
    """One measurement, in this process."""
    problem, controls = case(workload, optimizer, steps)
    task = problem.task
    few = replace(task, validation=Split(task.validation.x[:2], task.validation.y[:2]), batch_size=2)
    _run(engine, replace(problem, task=few, steps=3), controls)
    before, start = _largest(), time.process_time()
    _run(engine, problem, controls)
    return {"seconds": time.process_time() - start, "bytes": _largest() - before}


def _run(engine: str, problem: InnerProblem, controls: Tensors) -> None:
    make = ENGINES[engine]
    if make:
        control_gradient(make(problem, controls), problem, controls, OUTER)
    else:
        train(problem, controls)


def disagreement(workload: str, optimizer: str, steps: int) -> dict[str, float]:
    """The largest relative distance of each engine's gradient to plain unrolling."""
    problem, controls = case(workload, optimizer, steps)
    wrt = {
        name: control_gradient(make(problem, controls), problem, controls, OUTER).wrt
        for name, make in ENGINES.items()
        if make
    }
    right = wrt["unroll"]
    return {
        name: max(float((slope[c] - right[c]).norm() / right[c].norm()) for c in right) for name, slope in wrt.items()
    }


def _largest() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _in_its_own_process(*arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    return json.loads(subprocess.run(command, env=settings, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def rows(workload: str, optimizer: str, steps: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each engine on a case.

    This process stays small meanwhile: a child starts with the largest resident size of its parent.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ENGINES}
    for _ in range(repeats):
        for name, measured in found.items():
            measured.append(_in_its_own_process(name, workload, optimizer, steps))
    return [
        {
            "workload": workload,
            "optimizer": optimizer,
            "steps": steps,
            "engine": name,
            "n": repeats,
            "seconds": _summary([m["seconds"] for m in measured]),
            "bytes": _summary([m["bytes"] for m in measured]),
        }
        for name, measured in found.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Check that the engines agree, then measure every case and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--quick", action="store_true", help="T = 10 only, once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--case", nargs=3, action="append", metavar=("WORKLOAD", "OPTIMIZER", "T"), help="instead of all"
    )
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.measure:
        engine, workload, optimizer, steps = arguments.measure
        agreement = engine == "agreement"
        print(json.dumps((disagreement if agreement else partial(measure, engine))(workload, optimizer, int(steps))))
        return
    if not arguments.json:
        parser.error("--json OUT is missing")
    start = time.perf_counter()
    given = [(workload, optimizer, int(steps)) for workload, optimizer, steps in arguments.case or ()]
    cases = QUICK if arguments.quick else given or CASES
    agreed = {
        f"{w}, {o}": _in_its_own_process("agreement", w, o, 10) for w, o in dict.fromkeys((w, o) for w, o, _ in cases)
    }
    worst = max(distance for distances in agreed.values() for distance in distances.values())
    assert worst <= AGREEMENT, agreed
    found = []
    for workload, optimizer, steps in cases:
        found += rows(workload, optimizer, steps, 1 if arguments.quick else arguments.repeats)
        for row in found[-len(ENGINES) :]:
            seconds, mib = row["seconds"]["median"], row["bytes"]["median"] / 2**20
            print(f"{workload} {optimizer} {steps} {row['engine']}: {seconds:.2f} s, {mib:.0f} MiB", file=sys.stderr)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "environment": environment(),
        "cpu": cpu_model(),
        "seconds": time.perf_counter() - start,
        "workloads": {name: workload._asdict() for name, workload in WORKLOADS.items()},
        "disagreement": agreed,
        "rows": found,
    }
    write_atomic(arguments.json, json_text(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
