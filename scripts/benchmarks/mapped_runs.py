r"""Many inner runs: one after the other, on worker processes, and mapped by torch.vmap. The numbers agree.

    python scripts/benchmarks/mapped_runs.py --json experiments/results/mapped_runs.json

One thread a process, after a warm-up; the three ways alternate. Wall time says what the machine gave, and compares
processes only on an idle one; CPU time of this process compares loop and mapped on a busy one too. The second part is
about hypergradients: those of 16 inner runs of the small CNN by the adjoint sweep, one after the other in this process
and on two processes; they must be the same bits. With --device cuda the first part measures loop and mapped there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from metasched.config.schema import Experiment
from metasched.core.randomness import generator
from metasched.engines.base import ControlGradient
from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment
from metasched.io.json_text import json_text
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors
from metasched.runs.config import RunConfig
from metasched.runs.local import Run
from metasched.runs.pool import Pool
from metasched.runs.pooled import PooledRuns, local_runs
from metasched.tasks.config import TaskConfig
from metasched.training.loop import train
from metasched.training.problem import build_problem
from metasched.training.stacked import mapping_pays, of_run, train_mapped
from metasched.training.state import TrainingState

WORKERS = 2
RUNS = (1, 4, 16, 64)
GRADIENTS = 16  # runs whose hypergradients are taken
AGREEMENT = 1e-4  # of weights after three steps in float32, where sums are in another order


def experiment(model: str, steps: int, device: str) -> Experiment:
    """Digits 8x8, batch 64, width 8, Adam; ANA in the mode of triangular noise."""
    return Experiment(
        task=TaskConfig(model=model, steps=steps),  # type: ignore[arg-type]
        method=MethodConfig(name="ana"),
        run=RunConfig(device=device),
    )


def controls_of(case: Experiment, runs: int) -> Tensors:
    """{control: [N, T, L]}: noise of about half a quantum."""
    problem = build_problem(case.problem)
    shape = (runs, problem.steps, len(problem.network.layers))
    noise = (0.5 + 0.05 * torch.rand(shape, generator=generator(0, "benchmark"))).to(case.run.device)
    return {"weight_noise": noise, "activation_noise": noise, "noise_mean": torch.zeros_like(noise)}


def own(controls: Tensors, run: int) -> Tensors:
    """The controls of one run."""
    return {name: v[run] for name, v in controls.items()}


def trained(case: Experiment, controls: Tensors, seed: int) -> float:
    """A run in a worker; what comes back is small."""
    return float(train(build_problem(case.problem).with_seed(seed), controls).losses[-1])


def disagreement(model: str, device: str) -> float:
    """Largest difference of a weight after three steps, mapped and in the loop."""
    case = experiment(model, 3, device)
    controls, problem = controls_of(case, 4), build_problem(case.problem)
    end = train_mapped(problem, controls, range(4))

    def distance(one: TrainingState, other: TrainingState) -> float:
        return max(float((one.params[n] - other.params[n]).abs().max()) for n in one.params)

    return max(distance(train(problem.with_seed(i), own(controls, i)).state, of_run(end, i)) for i in range(4))


def timed(function: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds of wall time, and of CPU time of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def rates(model: str, runs: int, steps: int, repeats: int, device: str, pool: Pool) -> dict[str, Any]:
    """Inner steps per second of each way, for so many runs."""
    case = experiment(model, steps, device)
    controls, problem = controls_of(case, runs), build_problem(case.problem)
    work = [(case, own(controls, i), i) for i in range(runs)]
    ways: dict[str, Callable[[], Any]] = {
        "loop": lambda: [trained(*arguments) for arguments in work],
        "mapped": lambda: train_mapped(problem, controls, range(runs)),
    }
    if device == "cpu":
        ways["processes"] = lambda: list(pool.map(trained, work))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            found[name].append(timed(way, device))
    found = {name: measured[1:] for name, measured in found.items()}  # without the warm-up
    done = runs * steps
    return {
        "model": model,
        "runs": runs,
        "steps": steps,
        "n": repeats,
        "pays": mapping_pays(problem, runs),
        "steps_per_second": {name: summary([done / wall for wall, _ in each]) for name, each in found.items()},
        "steps_per_cpu_second": {name: summary([done / cpu for _, cpu in found[name]]) for name in ("loop", "mapped")},
    }


def gradients(steps: int, repeats: int, pool: Pool) -> dict[str, Any]:
    """Hypergradients of many runs, in this process and on the pool."""
    case = experiment("convnet", steps, "cpu")
    controls, one = controls_of(case, GRADIENTS), local_runs(case.problem, case.meta)
    runs = [Run(own(controls, i), i) for i in range(GRADIENTS)]
    ways: dict[str, Callable[[], list[ControlGradient]]] = {
        "one process": lambda: one.gradients(runs),
        "two processes": lambda: PooledRuns(case.problem, case.meta, pool).gradients(runs),
    }
    bits = [way() for way in ways.values()]
    assert all(torch.equal(a.wrt[name], b.wrt[name]) for a, b in zip(*bits, strict=True) for name in a.wrt)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(timed(way, "cpu")[0])
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    return {
        "model": "convnet",
        "runs": GRADIENTS,
        "steps": steps,
        "n": repeats,
        "same_bits": True,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "throughput_ratio": summary(ratios),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Check that the ways agree, measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="OUT", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of each run")
    parser.add_argument("--quick", action="store_true", help="4 runs of 3 steps, once")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    repeats, steps = (1, 3) if arguments.quick else (arguments.repeats, arguments.steps)
    device, start, load = arguments.device, time.perf_counter(), os.getloadavg()
    agreed = {model: disagreement(model, device) for model in ("mlp", "convnet")}
    assert max(agreed.values()) <= AGREEMENT, agreed
    found = []
    with Pool(WORKERS) as pool:
        for model in agreed:
            for runs in RUNS[1:2] if arguments.quick else RUNS:
                found.append(rates(model, runs, steps, repeats, device, pool))
                medians = {name: round(s["median"]) for name, s in found[-1]["steps_per_cpu_second"].items()}
                print(f"{model}, {runs} runs, steps per CPU second: {medians}", file=sys.stderr)
        on_two = gradients(steps, repeats, pool) if device == "cpu" else None
    if on_two:
        print(f"gradients, two processes against one: {on_two['throughput_ratio']}", file=sys.stderr)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "environment": environment(),
        "cpu": cpu_model(),
        "device": torch.cuda.get_device_name(device) if device != "cpu" else "cpu",
        "seconds": time.perf_counter() - start,
        "load": {"before": load, "after": os.getloadavg()},
        "workers": WORKERS,
        "disagreement": agreed,
        "rows": found,
        "gradients": on_two,
    }
    write_atomic(arguments.json, json_text(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
