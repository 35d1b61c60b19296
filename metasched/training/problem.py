"""From a configuration to the inner problem that it describes."""

from __future__ import annotations

from functools import lru_cache

import torch

from metasched.config.schema import Experiment, RunConfig
from metasched.core.errors import MetaschedError
from metasched.methods import build_method
from metasched.network.quantize import quantize
from metasched.tasks import build_task
from metasched.training.optimizers import learning_rates, recipe
from metasched.training.step import InnerProblem


@lru_cache(maxsize=8)  # a worker builds each problem once; problems are immutable
def build_problem(experiment: Experiment, *, steps: int | None = None, relaxation: float = 0.0) -> InnerProblem:
    """The inner problem of an experiment, from seed 0.

    Args:
        experiment: the whole configuration.
        steps: horizon, if not the configured one.
        relaxation: width of the relaxed freeze mask, to learn through; 0 is the exact partition.

    Raises:
        MetaschedError: a device that is not there or cannot do what is asked, data that cannot be read, a model that
            does not fit them, or a parameter group without a member.
    """
    steps = steps or experiment.task.steps
    dtype = getattr(torch, experiment.run.dtype)
    _check_device(experiment.run.device)
    _check_autocast(experiment.run)
    task = build_task(experiment.task).to(experiment.run.device, dtype)
    method = build_method(experiment.method)
    if relaxation > 0:
        method = method.relaxed(relaxation)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.build().to(experiment.run.device, dtype)
    network = quantize(model, method, task.train.x[:2], first=experiment.quantize.first, last=experiment.quantize.last)
    optimizer, defaults = recipe(experiment.optimizer, network.module)
    rates = learning_rates(experiment.optimizer, steps)
    return InnerProblem(
        network, task, optimizer, {**defaults, "lr": rates}, steps, seed=0, autocast=experiment.run.autocast
    )


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name).item()  # a device that computes: not meta
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        why = str(error).partition("\n")[0].partition(". ")[0]
        raise MetaschedError("run.device", f"{name!r} cannot be used ({why})", "set it to cpu, or another") from None


def _check_autocast(run: RunConfig) -> None:
    if not run.autocast:
        return
    if run.dtype != "float32":
        problem = f"casts float32 only, and run.dtype is {run.dtype}"
        raise MetaschedError("run.autocast", problem, "set run.dtype to float32, or leave run.autocast out")
    try:
        torch.autocast(torch.device(run.device).type, torch.bfloat16)
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        raise MetaschedError("run.autocast", f"cannot be used on {run.device} ({why})", "leave it out") from None
