r"""Whether training with rounding, and ADMM, do what they are known for, on an MLP of digits that is trained in float.

    python scripts/reliability/training_methods.py --json experiments/results/reliability_training_methods.json \
        --table docs/tables/reliability_training_methods.md

    rounding   weights of 2 bits, activations in float: rounded to the nearest level without training (``rtn``), and
               trained by ``ste`` and by ``rounding``, for three level sets
    admm       90 % of the weights of each layer pruned after three quarters of the run, the rest retrained: without a
               pull before (``one_shot``) and under ADMM, each for equally many steps; and |W - Z| / |W| where pruning
               begins

Each arm starts at the same float network of its seed. Scores are those of the hard network on the test set. The exit
code is 1 if training is not 5 points above rounding, or ADMM not 5 points above one-shot, or if its residual does not
fall with a growing rho (means over the seeds).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from metasched import MethodConfig, Recipe, hardened_score, progress_of_steps
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.methods.admm import LOWEST, residual
from metasched.network.flat import Tensors, of_layers, rows
from metasched.network.quantize import quantize
from metasched.schedules.curves import Curve, constant, steps
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.tasks.digits import digits_task
from metasched.tasks.supervised import SupervisedTask
from metasched.training.loop import take_steps
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import learning_rates, recipe
from metasched.training.state import InnerProblem

LEVELS = ("int2", "midrise2", "normal2")
LIMIT = 0.05
AT = 0.75  # of the run, where ADMM's arms prune
PRETRAINED = 600
WIDTHS = (64, 48, 48, 48, 32, 10)
RHOS = (1e-4, 1e-3, 1e-2)

Start = tuple[nn.Module, SupervisedTask]  # a float network, and what it was trained on


def float_network(seed: int) -> Start:
    """An MLP without normalization, trained on the digits in float, and the task."""
    task = digits_task(TaskConfig(name="digits", batch=64))
    torch.manual_seed(seed)
    layers = [m for a, b in pairwise(WIDTHS) for m in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for step in range(PRETRAINED):
        loss = task.loss(model, task.batch(seed, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, task


def problem_of(start: Start, method: MethodConfig, num_steps: int, seed: int) -> InnerProblem:
    """Training from a float network, all of whose layers are quantized."""
    model, task = start
    network = quantize(model, Recipe(method, last=True), task.train.x[:2])
    settings = OptimizerConfig(name="adam", lr=0.002, decay="cosine")
    rule, hyper = recipe(settings)
    hyper = {**hyper, "lr": learning_rates(settings, num_steps)}
    return InnerProblem(network, replace(task, model=partial(deepcopy, model)), rule, hyper, num_steps, seed)


def trained(problem: InnerProblem, curves: dict[str, Curve]) -> tuple[float, float]:
    """Score of the hard network, and ADMM's residual where pruning begins (0 for other methods)."""
    layers, progress = problem.network.layers, progress_of_steps(problem.steps)
    controls = {name: curve(progress, layers).to(torch.get_default_dtype()) for name, curve in curves.items()}
    state, found = problem.initial(rows(controls, 0)), 0.0
    for done in take_steps(problem, state, controls, range(problem.steps)):
        state = done.state
        if done.step == int(AT * problem.steps) - 1:
            found = mean_residual(problem, state.params, state.method)
    return hardened_score(problem, state, "test"), found


def mean_residual(problem: InnerProblem, params: Tensors, state: Tensors) -> float:
    """The mean of |W - Z| / |W| over layers, 0 where there is no Z."""
    owns = of_layers(state)
    found = [
        float(residual(params[layer.weight_key].detach(), owns[layer.name]))
        for layer in problem.network.layers
        if "projection" in owns[layer.name]
    ]
    return statistics.mean(found) if found else 0.0


def rounding_arms(start: Start, seed: int, num_steps: int) -> dict[str, float]:
    """Scores with weights of 2 bits."""
    found = {"float": start[1].score(start[0], "test")}
    for levels in LEVELS:
        given = {"levels": levels, "scale": "least_squares", "activation_levels": None}
        problem = problem_of(start, MethodConfig(name="ste", **given), num_steps, seed)
        found[f"{levels} rtn"] = hardened_score(problem, problem.initial({}), "test")
        found[f"{levels} ste"] = trained(problem, {})[0]
        problem = problem_of(start, MethodConfig(name="rounding", **given), num_steps, seed)
        for name in ("rounding_stochastic", "rounding_linear"):
            curves = dict(hand_coded("rounding")[name].curves)
            found[f"{levels} {name}"] = trained(problem, curves)[0]
    return found


def admm_arms(start: Start, seed: int, num_steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Scores at 90 % zeros, and residuals where pruning begins."""
    method = MethodConfig(
        name="admm",
        constraint="prune",
        sparsity=0.9,
        projection_every=max(1, int(AT * num_steps) // 10),
        levels="int8",
        scale="max",
        granularity="channel",
        activation_levels=None,
    )
    problem = problem_of(start, method, num_steps, seed)
    then: dict[str, Curve] = {
        "sparsity": partial(constant, value=1.0),
        "weight_blend": partial(steps, times=(AT,), values=(0.0, 1.0)),
    }
    arms: dict[str, dict[str, Curve]] = {
        "one_shot": {**then, "rho": partial(constant, value=LOWEST)},
        **{f"rho {rho:g}": {**then, "rho": partial(constant, value=rho)} for rho in RHOS},
        "admm_growing": dict(hand_coded("admm")["admm_growing"].curves),
    }
    found = {name: trained(problem, curves) for name, curves in arms.items()}
    return {n: score for n, (score, _) in found.items()}, {n: left for n, (_, left) in found.items()}


def main() -> int:
    """Runs all seeds, prints the means, and compares them with the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounding-steps", type=int, default=400)
    parser.add_argument("--admm-steps", type=int, default=1600)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(arguments.seeds)
    starts = [float_network(seed) for seed in seeds]
    rounding = [rounding_arms(starts[seed], seed, arguments.rounding_steps) for seed in seeds]
    admm, residuals = zip(*(admm_arms(starts[seed], seed, arguments.admm_steps) for seed in seeds), strict=True)
    means = {
        part: {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
        for part, runs in (("rounding", rounding), ("admm", admm), ("residual", residuals))
    }
    gains = {
        "trained minus rounded, int2": means["rounding"]["int2 ste"] - means["rounding"]["int2 rtn"],
        "admm_growing minus one-shot": means["admm"]["admm_growing"] - means["admm"]["one_shot"],
        "residual of rho 0.0001 minus admm_growing": means["residual"]["rho 0.0001"]
        - means["residual"]["admm_growing"],
    }
    lines = ["| arm | mean | runs |", "| --- | --- | --- |"]
    for part, runs in (("rounding", rounding), ("admm", admm), ("residual", residuals)):
        lines += [
            f"| {part}: {name} | {mean:.4f} | {', '.join(f'{run[name]:.4f}' for run in runs)} |"
            for name, mean in means[part].items()
        ]
    print("\n".join([*lines, *(f"{name}: {gain:+.4f}" for name, gain in gains.items())]))
    if arguments.table:
        write_atomic(arguments.table, ("\n".join(lines) + "\n").encode())
    if arguments.json:
        about = {
            "command": " ".join(["python", *sys.argv]),
            "environment": environment(),
            "pretrained": PRETRAINED,
            "steps": {"rounding": arguments.rounding_steps, "admm": arguments.admm_steps},
            "seeds": list(seeds),
        }
        result = {**about, "means": means, "gains": gains, "rounding": rounding, "admm": admm, "residuals": residuals}
        write_atomic(arguments.json, (json_text(result, indent=2) + "\n").encode())
    return int(not (min(list(gains.values())[:2]) >= LIMIT and list(gains.values())[2] > 0))


if __name__ == "__main__":
    sys.exit(main())
