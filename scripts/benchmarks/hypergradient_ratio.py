r"""A hypergradient by the sweep against plain training and `higher`: ratios side by side, on three networks.

    python scripts/benchmarks/hypergradient_ratio.py --json experiments/results/hypergradient_ratio.json

Plain runs, sweeps that store every state (k = 1), economical sweeps and `higher` alternate in one process of one
thread; a ratio is that of two neighbours, and medians over rounds are kept. Times are CPU times of this process. The
inputs are random. ANA has the expectation under triangular noise of half a quantum; joint is of widths, freezing and
rates with learned scales. The optimizer is Adam.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hypergradient import peak_bytes
from training_step import LEARNED, NETWORKS, task_of

from metasched import MethodConfig, build_method, quantize
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, Unroll, control_gradient
from metasched.engines.memory import Plan
from metasched.engines.sweep import unroll as sweep
from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment
from metasched.io.json_text import json_text
from metasched.network.flat import Tensors
from metasched.training.loop import train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem

METHODS = {
    "joint": MethodConfig(name="joint", of="widths+inq+rates", **LEARNED),
    "inq": MethodConfig(name="inq"),
    "ana": MethodConfig(name="ana", forward="expectation", noise="triangular"),
}
ENGINES: dict[str, Unroll] = {
    "sweep, every state": partial(sweep, plan=Plan((1,), 1)),
    "sweep": find_unroll("sweep"),
    "higher": find_unroll("higher"),
}
GOALS = {"plain": 3.5, "higher": 1.0}  # of the sweep that stores every state
OUTER = OuterLoss()


def built(network: str, method: str, steps: int) -> tuple[InnerProblem, Tensors]:
    """The inner problem, and its controls {control: [T, L]}: freezing grows, all others are constant."""
    task = task_of(network)
    torch.manual_seed(0)
    rule, hyper = recipe(OptimizerConfig(name="adam", lr=0.01))
    module = quantize(task.build(), build_method(METHODS[method]), task.train.x[:8]).relaxed(0.3)
    shape, controls = (steps, len(module.layers)), {}
    for control in module.method.controls:
        controls[control.name] = torch.full(shape, 0.5 if control.none_value is None else float(control.none_value))
    if "freeze_fraction" in controls:
        controls["freeze_fraction"] = torch.linspace(0, 0.9, steps)[:, None].expand(shape).clone()
    return InnerProblem(module, task, rule, hyper, steps, seed=0), controls


def measured(network: str, method: str, steps: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds of milliseconds a step and of ratios, and the bytes of live tensors of each engine."""
    problem, controls = built(network, method, steps)

    def seconds(engine: str) -> float:
        start = time.process_time()
        if engine == "plain":
            train(problem, controls)
        else:
            control_gradient(ENGINES[engine], problem, controls, OUTER)
        return time.process_time() - start

    found: dict[str, list[float]] = {"plain": [], **{engine: [] for engine in ENGINES}}
    for _ in range(rounds + 1):
        for engine, own in found.items():
            own.append(seconds(engine))
    found = {engine: own[1:] for engine, own in found.items()}  # without the one that warms up
    ratios = {
        f"{engine} / {other}": _spread([a / b for a, b in zip(found[engine], found[other], strict=True)])
        for engine in ENGINES
        for other in ("plain", "higher")
        if engine != other
    }
    size = {
        engine: peak_bytes(partial(control_gradient, ENGINES[engine], problem, controls, OUTER)) for engine in ENGINES
    }
    few, row = replace(problem, steps=3), {name: values[:3] for name, values in controls.items()}
    slopes = [control_gradient(ENGINES[engine], few, row, OUTER).wrt for engine in ENGINES]
    assert all(torch.equal(slopes[0][name], slopes[1][name]) for name in row), "the sweeps differ"
    return {
        "network": network,
        "method": method,
        "ms": {engine: 1e3 * statistics.median(own) / steps for engine, own in found.items()},
        "ratios": ratios,
        "bytes": size,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    """Measures, shows and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for network in NETWORKS:
        for method in METHODS:
            rows.append(row := measured(network, method, arguments.steps, arguments.rounds))
            shown = [
                f"{name} {r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for name, r in row["ratios"].items()
            ]
            shares = [f"{name} {b / row['bytes']['higher']:.3f}" for name, b in row["bytes"].items()]
            print(f"{network}, {method}: {', '.join(shown)}; bytes of higher: {', '.join(shares)}", flush=True)
            if arguments.json:
                result = {
                    "steps": arguments.steps,
                    "rounds": arguments.rounds,
                    "goals": GOALS,
                    "environment": environment(),
                    "cpu": cpu_model(),
                    "rows": rows,
                }
                write_atomic(arguments.json, (json_text(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
