"""From an experiment and a schedule, or from a converted network of one's own, to a deployed network, in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.core.imports import find_function
from metasched.core.randomness import derive_seed
from metasched.deploy.converted import deploy as deploy_converted
from metasched.deploy.converted import deploy_images
from metasched.deploy.files import check_new
from metasched.deploy.integer import input_step, integer_of
from metasched.evaluation.contenders import named_schedule
from metasched.methods.tensors import LayerQuantizer
from metasched.network.convert import converted
from metasched.network.flat import rows
from metasched.runs.cells import played
from metasched.tasks.base import Task
from metasched.tasks.supervised import Split, Stored, SupervisedTask
from metasched.tracking.console import Console, watched
from metasched.training.faults import broken
from metasched.training.loop import harden, score_of, take_steps
from metasched.training.problem import build_problem


def check(config: ProblemConfig, folder: Path) -> None:
    """What shows before any training.

    Raises:
        MetaschedError: the folder is there, or the network has no integer form.
    """
    check_new(folder)
    problem = build_problem(config)
    network, (examples, _) = problem.network, _in_memory(problem.task)
    if not isinstance(getattr(network.method, "quantizer", None), LayerQuantizer):
        raise MetaschedError("method", "has no level sets to deploy", "use one of metasched's methods")
    fresh = problem.initial(network.neutral())
    module = converted(network, fresh.params, fresh.method, fresh.buffers)
    integer_of(module, examples.x[:1], input_step(examples.x))


def deploy(
    config: ProblemConfig, seed: int, schedule: str, folder: Path, console: Console, *, horizon: int = 1
) -> dict[str, Any]:
    """Train under a schedule, convert, fold, compare on the whole test set, and write the files.

    Args:
        config: task and method, which have passed ``check``.
        seed: of the experiment; the network is trained from a fresh one that follows from it.
        schedule: name of a hand-coded schedule, or a schedule file; played over all of the training.
        folder: is made; nothing is left of it if anything fails.
        console: where the account is shown.
        horizon: multiple of ``task.steps`` that is trained.

    Returns:
        scores on the test set, the agreement, the compression.

    Raises:
        MetaschedError: the folder is there, training went to numbers that are not finite, the trained network has no
            integer form, or a runtime does not agree.
    """
    check_new(folder)
    steps = horizon * config.task.steps
    problem = build_problem(config, steps=steps).with_seed(derive_seed(seed, "deploy"))
    examples, test = _in_memory(problem.task)
    like = next(problem.network.module.parameters())
    controls = played(config, named_schedule(config, schedule, "--schedule"), steps)
    values = {name: v.to(like) for name, v in controls.items()}
    state = problem.initial(rows(values, 0))
    for done in watched(console, "training steps", take_steps(problem, state, values, range(steps)), steps):
        state = done.state
    if broken(state):
        raise MetaschedError("deploy", "training went to numbers that are not finite", "try another schedule or seed")
    _, buffers = harden(problem, state)
    module = converted(problem.network, state.params, state.method, buffers)
    more = {"score_float_input": score_of(problem, module, "test")}
    return deploy_images(module, input_step(examples.x), test.x, test.y, more, folder, console)


def deploy_own(where: str, folder: Path, console: Console) -> dict[str, Any]:
    """Deploys the converted network that a function of the user's returns; nothing is trained.

    Args:
        where: ``package.module:function``, which takes no arguments and returns the converted network and the data, as
            ``metasched.deploy`` takes them; its package must be allowed by ``--import``.
        folder: is made; nothing is left of it if anything fails.
        console: where the account is shown.

    Returns:
        see ``metasched.deploy``.

    Raises:
        MetaschedError: the function may not be imported, is not there, raises, or returns something else; and what
            ``metasched.deploy`` raises.
    """
    check_new(folder)
    function = find_function(where, "deploy")
    try:
        made = function()
    except MetaschedError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise MetaschedError("deploy", f"{where} raised {type(error).__name__}: {error}", "mend it") from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        problem = f"{where} returned a {type(made).__name__} that is not a pair of a converted network and data"
        raise MetaschedError("deploy", problem, "return (metasched.convert(module), images)")
    module, data = made
    return deploy_converted(module, data, folder, console)


def _in_memory(task: Task) -> tuple[Split, Split]:
    """The training and the test part."""
    if not isinstance(task, SupervisedTask):
        what = f"{task.name} is a task of its own, and images of one tensor are coded"
        raise MetaschedError("task", what, "deploy from a built-in data set")
    if isinstance(task.train, Stored) or isinstance(task.test, Stored):
        what = f"{task.name} stays on disk, and all of its images are coded at once"
        raise MetaschedError("task.name", what, "deploy from a data set that fits into memory")
    if task.train.x.ndim != 4:
        what = f"{task.name} has no images, which are what is coded"
        raise MetaschedError("task.name", what, "deploy from a data set of images")
    return task.train, task.test
