"""From a configuration to the inner problem that it describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.core.imports import allow
from metasched.core.rows import from_outside
from metasched.methods.spec import draws_weights
from metasched.network.quantize import quantize
from metasched.network.recipe import Recipe, rules_for
from metasched.tasks.base import Task, start
from metasched.tasks.build import made, outside_code, task_builder
from metasched.tasks.check import check_task
from metasched.tasks.config import TaskConfig
from metasched.tasks.fingerprint import code_fingerprint
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import learning_rates, recipe
from metasched.training.state import InnerProblem


def build_problem(config: ProblemConfig, *, steps: int | None = None, relaxation: float = 0.0) -> InnerProblem:
    """The inner problem of an experiment, from seed 0.

    It is remembered, with the functions that make its task: where one is another, the task is made anew.

    Args:
        config: what it depends on: ``Experiment.problem``.
        steps: horizon, if not the configured one.
        relaxation: width of the relaxed freeze mask, to learn through; 0 is the exact partition.

    Raises:
        MetaschedError: a device that is not there or cannot do what is asked, data that cannot be read, a model that
            does not fit them, a task that breaks its contract, or a parameter group without a member.
    """
    allow(config.imports)
    _check_device(config.device)
    _check_autocast(config)
    return _build(config, _found(config.task), steps or config.task.steps, relaxation)


def optimizer_of(settings: OptimizerConfig, task: Task) -> OptimizerConfig:
    """The optimizer of the experiment, or that of the task where the experiment leaves its section at its defaults."""
    return task.optimizer if task.optimizer is not None and settings == OptimizerConfig() else settings


def forget() -> None:
    """Drops all remembered problems and tasks, and with them the memory that their data take."""
    _build.cache_clear()
    _placed.cache_clear()
    _built.cache_clear()


class _Found(NamedTuple):
    """A task and its fingerprint; equal to itself only."""

    task: Task
    fingerprint: str

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def _found(config: TaskConfig) -> _Found:
    """The task of a configuration. Its horizon plays no part, unless a row from outside the package makes it."""
    if not any(from_outside(row) for row in config.rows):
        config = replace(config, steps=TaskConfig.steps)
    return _built(task_builder(config), outside_code(config), config)


@lru_cache(maxsize=4)
def _built(builder: Callable[..., object], outside: tuple[Callable[..., object], ...], config: TaskConfig) -> _Found:
    task = made(builder, config)
    if not outside:
        return _Found(task, task.fingerprint())
    check_task(task)
    return _Found(task, code_fingerprint(*outside)[:16] + task.fingerprint()[:16])


@lru_cache(maxsize=4)  # problems of one task share its data, on a GPU and in float64 too
def _placed(found: _Found, device: str, dtype: str) -> Task:
    return found.task.to(device, getattr(torch, dtype))


class Ingredients(NamedTuple):
    """What a quantized network is made of: the float model, the recipe, and an example pass of the task's loss."""

    model: nn.Module
    recipe: Recipe
    example: Callable[[nn.Module], object]


def ingredients(config: ProblemConfig) -> Ingredients:
    """The ingredients of an experiment's network; raises as ``build_problem`` does."""
    allow(config.imports)
    _check_device(config.device)
    return _ingredients(config, _placed(_found(config.task), config.device, config.dtype))


def _ingredients(config: ProblemConfig, task: Task) -> Ingredients:
    chosen = config.quantize
    pretrained = chosen.redraw is None and task.initial() is not None
    if pretrained and draws_weights(config.method):
        problem = "unit draws the weights anew, and the task starts from pretrained ones"
        raise MetaschedError("method.scale", problem, "set it to max, least_squares or pow2, or set quantize.redraw")
    rules = rules_for(config.method, chosen.rules)  # checked for the experiment's own method, which floors have not
    how = Recipe(config.method, rules, chosen.first, chosen.last, redraw=chosen.redraw is not False)
    how.build()  # what is wrong with the method shows before there is a model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = start(task).to(config.device, getattr(torch, config.dtype))
        batch = task.placed(task.batch(0, 0))
    return Ingredients(model, how, lambda module: task.loss(module, batch))


@lru_cache(maxsize=8)  # a worker builds each problem once; problems are immutable
def _build(config: ProblemConfig, found: _Found, steps: int, relaxation: float) -> InnerProblem:
    task = _placed(found, config.device, config.dtype)
    model, how, example = _ingredients(config, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = quantize(model, how, example)
    if relaxation > 0:
        network = network.relaxed(relaxation)
    settings = optimizer_of(config.optimizer, task)
    bare = recipe(replace(settings, groups=()))
    hyper = {**bare.hyper, "lr": learning_rates(settings, steps)}
    problem = InnerProblem(
        network, task, bare.optimizer, hyper, steps, seed=0, autocast=config.autocast, fingerprint=found.fingerprint
    )
    if not settings.groups:
        return problem
    trained = problem.initial(network.neutral()).params  # trainable tensors of the method among them
    return replace(problem, optimizer=recipe(settings, network.module, trained).optimizer)


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name).item()  # a device that computes: not meta
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        why = str(error).partition("\n")[0].partition(". ")[0]
        raise MetaschedError("run.device", f"{name!r} cannot be used ({why})", "set it to cpu, or another") from None


def _check_autocast(config: ProblemConfig) -> None:
    if not config.autocast:
        return
    if config.dtype != "float32":
        problem = f"casts float32 only, and run.dtype is {config.dtype}"
        raise MetaschedError("run.autocast", problem, "set run.dtype to float32, or leave run.autocast out")
    try:
        torch.autocast(torch.device(config.device).type, torch.bfloat16)
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        raise MetaschedError("run.autocast", f"cannot be used on {config.device} ({why})", "leave it out") from None
