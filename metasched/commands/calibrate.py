"""From a trained network and unlabelled batches to a calibrated one: what ``metasched calibrate`` does."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from metasched.calibration.batches import Batch
from metasched.calibration.parts import By
from metasched.calibration.table import find_procedure, options_of
from metasched.calibration.walking import Progress, UnitReport, calibrate
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.imports import find_function
from metasched.core.randomness import derive_seed
from metasched.deploy.converted import deploy as deploy_converted
from metasched.deploy.files import check_new, write_folder
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.network.convert import convert
from metasched.network.recipe import Recipe
from metasched.tasks.base import Task
from metasched.tracking.console import Console
from metasched.training.problem import build_problem, ingredients

_EVERY = 10.0  # seconds between two lines of progress within a unit


class Request(NamedTuple):
    """What is calibrated, and how.

    Attributes:
        model: a trained float network.
        recipe: what is quantized.
        batches: inputs without labels.
        score: the score of a network, where there is one.
    """

    model: nn.Module
    recipe: Recipe
    batches: Sequence[Batch]
    score: Callable[[nn.Module], float] | None


class How(NamedTuple):
    """The procedure, its options, the units, and the folders that are made; None for none."""

    method: str
    options: Mapping[str, Any]
    by: By
    output: Path | None
    deploy: Path | None


def of_experiment(experiment: Experiment, batches: int) -> Request:
    """The pretrained network of an experiment, with the inputs of as many training batches; labels are not read.

    Raises:
        MetaschedError: the task starts from random weights, or its loss does not call the network on one input.
    """
    config = experiment.problem
    task = build_problem(config).task
    if task.initial() is None:
        problem = "starts from random weights, and calibration takes a trained network"
        raise MetaschedError("task.pretrained", problem, "set it to a number of steps, or give PACKAGE.MODULE:FUNCTION")
    model, recipe, _ = ingredients(config)
    model.eval()
    seed = derive_seed(experiment.seed, "calibrate")
    inputs = [_inputs(task, model, seed, step) for step in range(batches)]

    def score(network: nn.Module) -> float:
        with torch.no_grad():
            return float(task.score(network, "validation"))

    return Request(model, recipe, inputs, score)


def of_function(where: str) -> Request:
    """What a function of the user's returns: a trained network, a recipe, and batches of inputs.

    Args:
        where: ``package.module:function``, which takes no arguments; its package must be allowed by ``--import``.

    Raises:
        MetaschedError: the function may not be imported, is not there, raises, or returns something else.
    """
    function = find_function(where, "calibrate")
    try:
        made = function()
    except MetaschedError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise MetaschedError("calibrate", f"{where} raised {type(error).__name__}: {error}", "mend it") from error
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], nn.Module)):
        problem = f"{where} returned a {type(made).__name__} that is not a network, a recipe and batches"
        raise MetaschedError("calibrate", problem, "return (model, metasched.Recipe(...), [inputs, ...])")
    model, recipe, batches = made
    return Request(model, recipe if isinstance(recipe, Recipe) else Recipe(recipe), list(batches), None)


def run(request: Request, how: How, console: Console) -> dict[str, Any]:
    """Calibrates, shows the progress and the account, and writes the folders, each wholly or not at all.

    Returns:
        the scores, errors of the units, seconds, in the types of JSON.

    Raises:
        MetaschedError: what does not fit.
    """
    for folder in (how.output, how.deploy):
        if folder is not None:
            check_new(folder)
    options_of(find_procedure(how.method), dict(how.options))
    start = time.perf_counter()
    shown = _Shown(console)
    module = calibrate(
        request.model, request.recipe, request.batches, how.method, by=how.by, progress=shown, **how.options
    )
    plain = convert(module)
    result: dict[str, Any] = {"method": how.method, "batches": len(request.batches)}
    if request.score is not None:
        plainest = calibrate(request.model, request.recipe, request.batches, "nearest", progress=lambda _: None)
        result["score_float"] = request.score(request.model)
        result["score_nearest"] = request.score(convert(plainest))
        result["score"] = request.score(plain)
    result["seconds"] = time.perf_counter() - start
    columns = ("unit", "layers", "error of nearest", "error", "seconds")
    table = [(r.unit, len(r.layers), r.nearest, r.error, r.seconds) for r in shown.reports]
    console.table(f"{how.method}: relative squared errors of outputs", columns, table)
    result["units"] = [asdict(r) for r in shown.reports]
    if how.output is not None:
        account = {**result, "options": dict(how.options), "environment": environment()}
        files = {"weights.pt": _state(plain), "account.json": (json_text(account, indent=2) + "\n").encode()}
        write_folder(how.output, files)
    if how.deploy is not None:
        result["deployed"] = deploy_converted(plain, _images(request.batches), how.deploy, console)
    return result


class _Shown:
    """Shows a line for each unit that is done, and for a long one now and then."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, time.perf_counter()
        self.reports: list[UnitReport] = []

    def __call__(self, progress: Progress) -> None:
        left = "" if progress.left is None else f", about {_time(progress.left)} left"
        where = f"calibrate: {progress.done}/{progress.total} units"
        if (report := progress.report) is not None:
            self.reports.append(report)
            errors = f"{report.unit}: error {report.error:.3g}, nearest {report.nearest:.3g}"
            self.console.note(f"{where}  {errors}  ({_time(progress.seconds)}{left})")
        elif time.perf_counter() - self.last > _EVERY:
            self.console.note(f"{where}  at {progress.unit}  ({_time(progress.seconds)}{left})")
        else:
            return
        self.last = time.perf_counter()


def _time(seconds: float) -> str:
    """A duration in words.

    >>> _time(7.04), _time(200)
    ('7.0 s', '3 min 20 s')
    """
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _inputs(task: Task, model: nn.Module, seed: int, step: int) -> Batch:
    """The input of the network in the first call of it that the loss of a training batch makes."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = model.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    try:
        with torch.no_grad():
            task.loss(model, task.placed(task.batch(seed, step)))
    finally:
        hook.remove()
    args, kwargs = seen[0] if seen else ((), {})
    if len(args) == 1 and not kwargs:
        return args[0]
    if kwargs and not args:
        return kwargs
    problem = f"calls the network with {len(args)} positional arguments"
    raise MetaschedError("task.loss", problem, "call it with one input, or with keyword arguments")


def _images(batches: Sequence[Batch]) -> torch.Tensor:
    if not all(isinstance(batch, torch.Tensor) for batch in batches):
        raise MetaschedError("--deploy", "takes networks of one input, images", "leave it out")
    return torch.cat([batch for batch in batches if isinstance(batch, torch.Tensor)])


def _state(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.getvalue()
