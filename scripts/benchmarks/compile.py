r"""torch.compile of training steps without hypergradients, against the eager steps.

    python scripts/benchmarks/compile.py --json experiments/results/compile.json

``inner step``: the loss of a step as learning takes it, and its gradients, are one compiled graph; batch, state of the
method and update stay eager. (The sites of a network read a context variable, which torch.compile does not know; here
it is a plain variable.) ``prepared``: ``torch.compile(module)`` of a module that ``prepare`` made, in a plain loop.

The networks, methods and batches of training_step.py, float32, one thread, one process; rounds of some steps of both
ways alternate. Kept are the CPU seconds of the first step, which compiles (compilers included; with an empty cache, and
again with what that left in it, as in a second process), the medians over rounds of CPU milliseconds a step and of the
ratio of both ways within a round, after how many steps compiling has paid, and how far the numbers of some steps are
from those of the eager step: the loss, and the gradients by their norm.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from training_step import HALF, METHODS, task_of

from metasched import build_method, prepare, quantize
from metasched.engines.base import norm
from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment
from metasched.io.json_text import json_text
from metasched.network import sites
from metasched.network.flat import Tensors
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import Evaluated, advance, inner_step, with_leaves

CASES = [
    ("inner step", network, method)
    for network in ("convnet, 9 layers, 1x8x8, batch 64", "ResNet-20, width 4, 1x8x8, batch 64")
    for method in ("ste", "joint")
] + [("prepared", "convnet, 9 layers, 1x8x8, batch 64", method) for method in ("ste", "joint")]
COMPARED = 5  # steps whose numbers are compared
Step = Callable[[int], tuple[torch.Tensor, list[torch.Tensor]]]  # number -> loss, 0-d, and gradients


class Ways(NamedTuple):
    """A step in both ways, each with a state of its own, and what makes their states equal."""

    eager: Step
    compiled: Step
    align: Callable[[], None]


class _Variable:
    """What a context variable does in one thread."""

    def __init__(self) -> None:
        self.value: Any = None

    def get(self, default: Any = None) -> Any:
        return default if self.value is None else self.value

    def set(self, value: Any) -> Any:
        before, self.value = self.value, value
        return before

    def reset(self, before: Any) -> None:
        self.value = before


def inner_steps(network: str, method: str) -> Ways:
    """Steps of an inner run."""
    task = task_of(network)
    torch.manual_seed(0)
    rule, hyper = recipe(OptimizerConfig(name="adam", lr=0.01))
    quantized = quantize(task.build(), build_method(METHODS[method]), task.train.x[:8])
    problem = InnerProblem(quantized, task, rule, hyper, 10**6, seed=0)
    none = {c.name: HALF if c.none_value is None else float(c.none_value) for c in quantized.method.controls}
    row = {name: torch.full((len(quantized.layers),), value) for name, value in none.items()}
    states = {"eager": problem.initial(row), "compiled": problem.initial(row)}

    def loss_of(params: Tensors, buffers: Tensors, state: Tensors, row: Tensors, batch: Any) -> torch.Tensor:
        model, penalty = quantized.model(quantized.call(buffers), params, state, row, 0, 0)
        loss = task.loss(model, batch)
        return loss if penalty is None else loss + penalty

    one_graph = torch.compile(loss_of, fullgraph=True, dynamic=False)

    def eager(step: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        states["eager"], loss, found = inner_step(problem, states["eager"], row, step, differentiable=False)
        return loss, list(found.values())

    def compiled(step: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        state: TrainingState = with_leaves(states["compiled"], keep_graph=False)
        buffers = {name: b.clone() for name, b in state.buffers.items()}
        own = quantized.prepare(state.params, state.method, row, 0, step)
        loss = one_graph(state.params, buffers, own, row, task.batch(0, step))
        found = torch.autograd.grad(loss, list(state.params.values()), materialize_grads=True)
        grads = quantized.gradients(dict(zip(state.params, found, strict=True)), own)
        states["compiled"] = advance(problem, state, Evaluated(loss, grads, buffers, own), row, step)
        return loss.detach(), list(grads.values())

    def align() -> None:
        states["compiled"] = states["eager"]

    return Ways(eager, compiled, align)


def prepared_steps(network: str, method: str) -> Ways:
    """Steps of a plain loop with a prepared module."""
    task = task_of(network)

    def one(compile: bool) -> tuple[Step, Any]:
        torch.manual_seed(0)
        schedule = "joint_linear" if method == "joint" else None
        module, player = prepare(task.build(), METHODS[method], task.train.x[:8], schedule, 10**6)
        optimizer = torch.optim.Adam(module.parameters(), 0.01)
        forward: Any = torch.compile(module, fullgraph=True, dynamic=False) if compile else module

        def step(number: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
            batch = task.batch(0, number)
            loss = F.cross_entropy(forward(batch.x), batch.y)
            optimizer.zero_grad()
            loss.backward()
            found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
            optimizer.step()
            player.step()
            return loss.detach(), found

        return step, module

    (eager, here), (compiled, there) = one(False), one(True)

    def align() -> None:
        there.load_state_dict(here.state_dict())

    return Ways(eager, compiled, align)


def cpu_seconds() -> float:
    """Of this process and of the compilers that it has started and that are done."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measured(kind: str, network: str, method: str, rounds: int, steps: int) -> dict[str, Any]:
    """One row of the results."""
    numbers, first = itertools.count(), []
    for _ in range(2):  # with an empty cache, and with what that has left there
        torch._dynamo.reset()
        ways = (inner_steps if kind == "inner step" else prepared_steps)(network, method)
        start = cpu_seconds()
        ways.compiled(next(numbers))
        first.append(cpu_seconds() - start)
    loss_error = gradient_error = 0.0
    for _ in range(COMPARED):
        ways.align()
        number = next(numbers)
        (loss, grads), (other, others) = ways.eager(number), ways.compiled(number)
        loss_error = max(loss_error, abs(float(other / loss) - 1))
        gradient_error = max(gradient_error, norm([b - a for a, b in zip(grads, others, strict=True)]) / norm(grads))
    found: dict[str, list[float]] = {"eager": [], "compiled": []}
    for _ in range(rounds):
        for name, step in (("eager", ways.eager), ("compiled", ways.compiled)):
            start = time.process_time()
            for _ in range(steps):
                step(next(numbers))
            found[name].append(1e3 * (time.process_time() - start) / steps)
    eager, compiled = (statistics.median(found[name]) for name in ("eager", "compiled"))
    saved = eager - compiled
    return {
        "kind": kind,
        "network": network,
        "method": method,
        "compiling_s": first[0],
        "compiling_again_s": first[1],
        "eager_ms": eager,
        "compiled_ms": compiled,
        "ratio": statistics.median(b / a for a, b in zip(found["eager"], found["compiled"], strict=True)),
        "pays_after_steps": round(1e3 * first[0] / saved) if saved > 0 else None,
        "loss_error": loss_error,
        "gradient_error": gradient_error,
    }


@contextmanager
def from_nothing() -> Iterator[None]:
    """Within: the compiler has an empty cache, and works in this process; sites read a plain variable."""
    from torch._inductor.utils import fresh_cache

    before, sites._activate = sites._activate, _Variable()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with fresh_cache():
            yield
    finally:
        sites._activate = before


def main() -> None:
    """Measures, shows and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    rows = []
    for case in CASES:
        with from_nothing():
            rows.append(row := measured(*case, arguments.rounds, arguments.steps))
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items()), flush=True)
    if arguments.json:
        result = {"environment": environment(), "cpu": cpu_model(), "rows": rows}
        write_atomic(arguments.json, (json_text(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
