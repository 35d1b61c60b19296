r"""A training step against hand-written plain torch with straight-through modules and learned scales (LSQ), ternary.

    python scripts/benchmarks/training_step.py --json experiments/results/training_step.json

The same network, batch size and optimizer (Adam), one thread, one process: rounds of some steps of each way alternate.
Kept are medians over rounds of CPU milliseconds a step, and of the ratio to the hand-written loop of the same round.
``ste`` and the two of ``joint`` are inner steps as learning runs them; ``float`` is the network without quantizers in
plain torch. Inputs are random; the controls mean no schedule, noise is half a quantum. Of one row half of the weights
are frozen.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from prepared_overhead import by_hand
from torch import nn
from torch.nn import functional as F

from metasched import MethodConfig, build_method, prepare, quantize
from metasched.core.randomness import generator
from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment
from metasched.io.json_text import json_text
from metasched.methods.base import Method
from metasched.models import build_model
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem
from metasched.training.step import inner_step

NETWORKS: dict[str, tuple[str, int, tuple[int, int, int], int]] = {  # model, width, image, batch
    "convnet, 9 layers, 1x8x8, batch 64": ("convnet", 8, (1, 8, 8), 64),
    "convnet, 9 layers, 1x28x28, batch 64": ("convnet", 8, (1, 28, 28), 64),
    "ResNet-20, width 4, 1x8x8, batch 64": ("resnet20", 4, (1, 8, 8), 64),
}
LEARNED: dict[str, Any] = {"scale": "learned", "activation_scale": "learned"}
METHODS = {
    "ste": MethodConfig(name="ste", **LEARNED),
    "joint": MethodConfig(name="joint", **LEARNED),
    "joint, half frozen": MethodConfig(name="joint", **LEARNED),
    "joint of widths+inq+rates": MethodConfig(name="joint", of="widths+inq+rates", **LEARNED),
}
FROZEN = {"joint, half frozen": 0.5}  # way -> freeze fraction
HAND = "hand-written"
HALF = 0.5  # quantum of noise, where no value means no schedule
GOALS = {"ste": 1.1, "joint": 1.3, "joint, half frozen": 1.3}
Step = Callable[[], object]


def task_of(network: str) -> SupervisedTask:
    """The network on random images."""
    model, width, image, batch = NETWORKS[network]
    draws = generator(0, "benchmark")

    def split(n: int) -> Split:
        return Split(torch.randn(n, *image, generator=draws), torch.randint(10, (n,), generator=draws))

    depth = {"depth": 9} if model == "convnet" else {}

    def build() -> nn.Module:
        return build_model(model, image, 10, width, **depth)

    return SupervisedTask("random", split(1024), split(batch), split(2), build, F.cross_entropy, F.cross_entropy, batch)


def by_torch(task: SupervisedTask, module: nn.Module) -> Step:
    """A plain loop over batches that are drawn with replacement."""
    optimizer = torch.optim.Adam(module.train().parameters(), 0.01)

    def step() -> None:
        batch = torch.randint(len(task.train.x), (task.batch_size,))
        loss = F.cross_entropy(module(task.train.x[batch]), task.train.y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def by_metasched(task: SupervisedTask, method: Method, frozen: float = 0.0) -> Step:
    """Inner steps, one after the other."""
    torch.manual_seed(0)
    rule, hyper = recipe(OptimizerConfig(name="adam", lr=0.01))
    problem = InnerProblem(quantize(task.build(), method, task.train.x[:8]), task, rule, hyper, 10**6, seed=0)
    layers = len(problem.network.layers)
    values = {c.name: HALF if c.none_value is None else float(c.none_value) for c in method.controls}
    if frozen:
        values["freeze_fraction"] = frozen
    row = {name: torch.full((layers,), value) for name, value in values.items()}

    def steps() -> Iterator[None]:
        state = problem.initial(row)
        for step in range(10**6):
            state, _, _ = inner_step(problem, state, row, step, differentiable=False)
            yield

    taken = steps()
    return lambda: next(taken)


def ways(network: str) -> dict[str, Step]:
    """What is compared, each ready to take steps."""
    task = task_of(network)
    torch.manual_seed(0)
    plain = task.build()
    prepared, _ = prepare(task.build(), METHODS["ste"], task.train.x[:8], None, 1)
    return {
        "float": by_torch(task, plain),
        HAND: by_torch(task, by_hand(prepared, True)),
        **{name: by_metasched(task, build_method(method), FROZEN.get(name, 0.0)) for name, method in METHODS.items()},
    }


def measured(network: str, rounds: int, steps: int) -> dict[str, Any]:
    """Medians over rounds: milliseconds a step, and the ratio to the hand-written loop with its extremes."""
    compared, found = ways(network), dict[str, list[float]]()
    for i in range(rounds + 1):  # the first one warms up
        for name, step in compared.items():
            start = time.process_time()
            for _ in range(steps):
                step()
            if i:
                found.setdefault(name, []).append(1e3 * (time.process_time() - start) / steps)
    rows = {}
    for name, own in found.items():
        ratios = sorted(a / b for a, b in zip(own, found[HAND], strict=True))
        rows[name] = {
            "ms": statistics.median(own),
            "ratio": statistics.median(ratios),
            "lowest": ratios[0],
            "highest": ratios[-1],
        }
    return {"network": network, "rounds": rounds, "steps": steps, "ways": rows}


def main() -> None:
    """Measures, shows and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for network in NETWORKS:
        rows.append(row := measured(network, arguments.rounds, arguments.steps))
        print(network)
        for name, way in row["ways"].items():
            goal = f", asked {GOALS[name]}" if name in GOALS else ""
            print(
                f"  {name}: {way['ms']:.2f} ms, {way['ratio']:.2f} ({way['lowest']:.2f} to {way['highest']:.2f}){goal}"
            )
    if arguments.json:
        result = {"environment": environment(), "cpu": cpu_model(), "rows": rows}
        write_atomic(arguments.json, (json_text(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
