"""What the benchmark of hypergradients measures: workloads, cases and engines."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

from metasched.core.randomness import generator
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, Unroll, control_gradient
from metasched.engines.memory import Plan, predicted_bytes
from metasched.engines.sweep import cost
from metasched.engines.sweep import unroll as sweep
from metasched.io.environment import version
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.models import build_model
from metasched.network.flat import Tensors
from metasched.network.quantize import quantize
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.loop import train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem

OUTER = OuterLoss()


class Workload(NamedTuple):
    """What is trained: a network of the table on random images."""

    model: str
    width: int
    image: tuple[int, int, int]
    batch: int


class Case(NamedTuple):
    """A workload, trained for some steps."""

    workload: str
    optimizer: str
    steps: int


WORKLOADS = {
    "convnet": Workload("convnet", 8, (1, 28, 28), 64),
    "resnet20": Workload("resnet20", 16, (3, 32, 32), 32),
}
CASES = [  # the most telling ones first
    *(Case("convnet", optimizer, steps) for steps in (100, 10, 50) for optimizer in ("adam", "sgd")),
    Case("resnet20", "sgd", 10),
    *(Case("convnet", optimizer, 300) for optimizer in ("adam", "sgd")),
    Case("resnet20", "sgd", 30),
    Case("convnet", "adam", 400),
]
QUICK = [Case("convnet", "adam", 10)]
CURVE = {"1/16": 1 / 16, "1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2}  # budgets, in shares of what keeps every graph


def _sweep_within(share: float, problem: InnerProblem, controls: Tensors) -> Unroll:
    """A sweep with a share of the bytes that keep the graph of every step, at least those that store every state."""
    state, graph, judgement = cost(problem, controls, OUTER)
    every_state, everything = (
        predicted_bytes(Plan((1,), kept), problem.steps, state, graph) for kept in (1, problem.steps)
    )
    return find_unroll("sweep", max(int(share * everything), every_state) + judgement)


def _torchopt(problem: InnerProblem, controls: Tensors) -> Unroll:
    from torchopt_rule import TorchOpt

    other = TorchOpt(problem.optimizer, problem.hyper)
    return lambda problem, controls, outer: find_unroll("unroll")(replace(problem, optimizer=other), controls, outer)


ENGINES: dict[str, Callable[[InnerProblem, Tensors], Unroll] | None] = {  # None: training without a hypergradient
    "plain": None,
    "sweep": lambda problem, controls: find_unroll("sweep"),
    "sweep, every state": lambda problem, controls: partial(sweep, plan=Plan((1,), 1)),
    **{f"sweep, {name}": partial(_sweep_within, share) for name, share in CURVE.items()},
    "sweep, everything": partial(_sweep_within, 1.0),
    "higher": lambda problem, controls: find_unroll("higher"),
    "unroll": lambda problem, controls: find_unroll("unroll"),
    "torchopt": _torchopt,
}
KEEP_ALL = {"sweep, everything", "higher", "unroll", "torchopt"}


def engines_of(case: Case) -> list[str]:
    """The curve of budgets is measured at T = 100; at T = 400 only how the memory of the economical sweep grows."""
    if case.steps == 400:
        return ["sweep"]
    return [name for name in ENGINES if case.steps == 100 or name.removeprefix("sweep, ") not in CURVE]


def built(case: Case) -> tuple[InnerProblem, Tensors]:
    """The inner problem of a case, and its controls."""
    model, width, image, batch = WORKLOADS[case.workload]
    draws = generator(0, "benchmark")

    def split(n: int) -> Split:
        return Split(torch.randn(n, *image, generator=draws), torch.randint(10, (n,), generator=draws))

    def build() -> torch.nn.Module:
        return build_model(model, image, 10, width)

    task = SupervisedTask("random", split(1024), split(batch), split(2), build, F.cross_entropy, F.cross_entropy, batch)
    method = build_method(MethodConfig(name="ana", forward="expectation", noise="triangular"))
    rule, hyper = recipe(OptimizerConfig(name=case.optimizer, lr=0.01))  # type: ignore[arg-type]
    torch.manual_seed(0)
    problem = InnerProblem(quantize(build(), method, task.train.x[:2]), task, rule, hyper, case.steps, seed=0)
    shape = (case.steps, len(problem.network.layers))
    noise = 0.5 + 0.05 * torch.rand(shape, generator=draws)
    return problem, {"weight_noise": noise, "activation_noise": noise, "noise_mean": torch.zeros(shape)}


def run(engine: str, problem: InnerProblem, controls: Tensors) -> Tensors:
    """One inner run; its derivative in the controls, if the engine has one."""
    make = ENGINES[engine]
    if make:
        return control_gradient(make(problem, controls), problem, controls, OUTER).wrt
    train(problem, controls)
    return {}


def obstacle(engine: str, problem: InnerProblem, controls: Tensors) -> str | None:
    """Why an engine cannot run a problem here: TorchOpt is optional, and some graphs are larger than the machine."""
    if engine == "torchopt" and version("torchopt") is None:
        return "torchopt is not installed"
    needed = sum(cost(problem, controls, OUTER)[:2]) * problem.steps if engine in KEEP_ALL else 0
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"needs {needed / 2**30:.0f} GiB, more than the machine had free" if needed > 0.7 * available else None
