r"""Fits cost_model.py to short measurements, and checks it on whole commands.

    python scripts/fit_cost_model.py --root DATA --json experiments/results/cost_model.json

DATA is the folder of FashionMNIST. The constants are fitted to medians of short measurements on digits, one thread; all
times are CPU seconds, because the machine may be busy. Then three commands that were not fitted are predicted and run.
How fast images of ImageNet's size are read is measured on one made file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cost_model import Costs, Sizes, phases_of, run_seconds, step_seconds, total_seconds
from PIL import Image
from scipy.optimize import nnls
from torch import nn

from metasched.config.load import experiment_of
from metasched.config.schema import Experiment
from metasched.config.writing import to_dict
from metasched.evaluation.references import with_learned_scales
from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment
from metasched.io.json_text import json_text
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors
from metasched.network.inspect import inspect
from metasched.runs.local import Run
from metasched.runs.pooled import local_runs
from metasched.tasks.imagenet import read_image
from metasched.training.loop import hardened_score, take_steps
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem

METHOD = MethodConfig(name="joint", of="widths+inq+rates", scale="least_squares", granularity="channel")
STE = MethodConfig(name="ste", scale="least_squares", granularity="channel")
STEPS = 12  # of a measured run
FITTED: list[dict[str, Any]] = [  # tasks whose steps are measured
    {"model": "convnet", "depth": 9, "width": 8, "batch": 64},
    {"model": "convnet", "depth": 9, "width": 8, "batch": 16},
    {"model": "convnet", "depth": 4, "width": 24, "batch": 64},
    {"model": "resnet20", "width": 4, "batch": 64},
    {"model": "mlp", "depth": 3, "width": 256, "batch": 64},
    {"model": "mlp", "depth": 6, "width": 32, "batch": 64},
]
WHOLE = (0, 3)  # of these also what a run takes beside its steps
TINY: dict[str, dict[str, Any]] = {  # a command that is almost only its start
    "task": {"model": "mlp", "width": 8, "depth": 2, "steps": 1},
    "meta": {"estimator": "es", "runs": 2, "steps": 1},
}
CHECKED: dict[str, dict[str, Any]] = {  # commands that are predicted
    "MLP of 4 hidden layers, digits, es": {
        "task": {"model": "mlp", "depth": 4, "width": 128, "steps": 40},
        "meta": {"estimator": "es", "steps": 4, "runs": 4},
        "compare": {"seeds": 8},
    },
    "CNN of 6 layers, digits, guided": {
        "task": {"model": "convnet", "depth": 6, "width": 16, "steps": 30},
        "meta": {"estimator": "guided", "steps": 3, "runs": 5},
        "compare": {"seeds": 4, "tune_floors": 5},
    },
    "CNN of 9 layers, FashionMNIST, es": {
        "task": {"name": "fashion_mnist", "train": 2000, "validation": 500, "test": 1000, "depth": 9, "steps": 30},
        "meta": {"estimator": "es", "steps": 2, "runs": 3, "confirm_runs": 2},
        "compare": {"seeds": 2},
    },
}


def experiment(task: Mapping[str, Any], meta: Mapping[str, Any], compare: Mapping[str, Any]) -> Experiment:
    """The main job of the README for another task, without baselines."""
    document: dict[str, Any] = {
        "name": "cost",
        "seed": 3,
        "task": {"name": "digits", **task},
        "optimizer": {"name": "adam", "lr": 0.02, "decay": "cosine"},
        "method": METHOD,
        "schedule": {"start": "floor", "knots": 13, "directions": 26},
        "meta": meta,
        "compare": {"seeds": 2, "baselines": [], **compare},
        "run": {"workers": 1},
    }
    return experiment_of(document)


def sizes_of(settings: Experiment) -> Sizes:
    """Of the network of an experiment."""
    problem, numbers = build_problem(settings.problem), 0
    model, example = problem.task.build().eval(), problem.task.train.x[:1]  # type: ignore[attr-defined]

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal numbers
        numbers += output.numel()

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(example)
    macs = inspect(problem.task.build(), settings.method, example).macs
    return Sizes(len(problem.network.layers), macs, numbers, settings.task.batch)


def seconds_of(work: Callable[[], Any], repeats: int) -> float:
    """Median CPU seconds after a warm-up."""
    found = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found[1:])


def moving(settings: Experiment, method: MethodConfig) -> tuple[InnerProblem, Tensors]:
    """The problem with this method, and controls {control: [T, L]}: no schedule, but freezing from none to all."""
    problem = build_problem(settings.problem._replace(method=method))
    shape = (problem.steps, len(problem.network.layers))
    controls = {c.name: torch.full(shape, float(c.none_value or 0)) for c in problem.network.method.controls}
    if "freeze_fraction" in controls:
        controls["freeze_fraction"] = torch.linspace(0, 1, shape[0])[:, None].expand(shape).contiguous()
    return problem, controls


def step_of(settings: Experiment, method: MethodConfig) -> float:
    """Seconds of a step."""
    problem, controls = moving(settings, method)
    state = problem.initial({name: v[0] for name, v in controls.items()})
    return seconds_of(lambda: list(take_steps(problem, state, controls, range(STEPS))), 5) / STEPS


def beside_steps(settings: Experiment) -> dict[str, float]:
    """Seconds of the start of a run, of judging it, for how many examples, and of a hypergradient."""
    problem, controls = moving(settings, METHOD)
    first, task = {name: v[0] for name, v in controls.items()}, problem.task
    state, runs = problem.initial(first), local_runs(settings.problem, settings.meta)
    return {
        "start": seconds_of(lambda: problem.initial(first), 5),
        "judging": seconds_of(lambda: hardened_score(problem, state, "validation"), 3),
        "examples": len(task.train.x) + len(task.validation.x),  # type: ignore[attr-defined]
        "hypergradient": seconds_of(lambda: runs.gradients([Run(controls, 1)]), 1),
    }


def fitted() -> tuple[Costs, list[dict[str, Any]]]:
    """The constants without the start of a command, and the measured and the fitted milliseconds of each step."""
    every = [experiment({**task, "steps": STEPS}, {"estimator": "guided"}, {}) for task in FITTED]
    sizes = [sizes_of(settings) for settings in every]
    seconds = [step_of(settings, STE) for settings in every]
    terms = np.array([[z.layers, z.macs * z.batch, z.numbers * z.batch] for z in sizes])
    (a, b, c), _ = nnls(terms / np.array(seconds)[:, None], np.ones(len(seconds)))  # least squares of relative errors
    others = {"learned": METHOD, "lsq": with_learned_scales(STE), "float": MethodConfig(name="float")}
    factors = {name: statistics.mean(step_of(every[i], m) / seconds[i] for i in WHOLE) for name, m in others.items()}
    found = [(sizes[i], beside_steps(every[i])) for i in WHOLE]
    plain = Costs(a, b, c, 0.0, 0.0, 0.0, 0.0, {"ste": 1.0, **factors})
    costs = plain._replace(
        evaluation=statistics.mean(f["judging"] / ((b * z.macs + c * z.numbers) * f["examples"]) for z, f in found),
        run=statistics.mean(f["start"] / z.layers for z, f in found),
        hypergradient=statistics.mean(
            f["hypergradient"] / (STEPS * step_seconds(plain, z, "learned")) for z, f in found
        ),
    )
    rows = [
        {**task, **z._asdict(), "step_ms": 1e3 * s, "fitted_ms": 1e3 * step_seconds(costs, z, "ste")}
        for task, z, s in zip(FITTED, sizes, seconds, strict=True)
    ]
    return costs, rows


def command_seconds(settings: Experiment) -> float:
    """CPU seconds of ``metasched train``, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "experiment.yaml")
        path.write_text(json_text(to_dict(settings)))
        before = os.times()
        command = [sys.executable, "-m", "metasched", "train", str(path), "--run.folder", f"{folder}/runs"]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def predicted(costs: Costs, settings: Experiment) -> dict[str, Any]:
    """Seconds of a command, and of its parts."""
    task = build_problem(settings.problem).task
    n = [len(split.x) for split in (task.train, task.validation, task.test)]  # type: ignore[attr-defined]
    phases, sizes, parts = phases_of(settings, *n), sizes_of(settings), dict[str, float]()
    for phase in phases:
        parts[phase.name] = parts.get(phase.name, 0.0) + phase.runs * run_seconds(costs, sizes, phase)
    return {"runs": sum(p.runs for p in phases), "predicted_s": total_seconds(costs, sizes, phases), "parts_s": parts}


def images_a_second() -> float:
    """How many photographs of 500x375 pixels a CPU second reads, as the task ``imagenet`` does, to 224 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
        path = Path(folder, "image.jpg")
        Image.fromarray(noise).resize((500, 375)).save(path, quality=90)
        return 20 / seconds_of(lambda: [read_image(str(path), size=224) for _ in range(20)], 5)


def main() -> None:
    """Fits, predicts, runs, shows and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of FashionMNIST")
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    costs, rows = fitted()
    tiny = experiment(TINY["task"], TINY["meta"], {})
    costs = costs._replace(start=command_seconds(tiny) - predicted(costs, tiny)["predicted_s"])
    print(json_text(costs._asdict()), *map(json_text, rows), sep="\n")
    checks = []
    for name, sections in CHECKED.items():
        task = sections["task"] | ({"root": arguments.root} if "name" in sections["task"] else {})
        settings = experiment(task, sections["meta"], sections["compare"])
        guess = predicted(costs, settings)
        took = command_seconds(settings)
        checks.append(row := {"command": name, **guess, "took_s": took, "error": guess["predicted_s"] / took - 1})
        print(json_text(row), flush=True)
    reading = images_a_second()
    print(f"{reading:.0f} images a CPU second")
    if arguments.json:
        result = {"environment": environment(), "cpu": cpu_model(), "costs": costs._asdict(), "steps": rows}
        result |= {"checks": checks, "images_a_second": reading}
        write_atomic(arguments.json, (json_text(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
