"""From the section ``task`` of an experiment to the task."""

from __future__ import annotations

from collections.abc import Callable

from metasched.core.errors import MetaschedError
from metasched.core.imports import find_function
from metasched.core.rows import find_row, from_outside
from metasched.tasks.base import Task
from metasched.tasks.config import TaskConfig
from metasched.tasks.live import LIVE, find_live
from metasched.tasks.pretraining import pretrained
from metasched.tasks.table import TASKS


def build_task(config: TaskConfig) -> Task:
    """The task that a config describes, its inputs in float32 on the CPU (imagenet: on disk, but for validation).

    Raises:
        MetaschedError: with the path of the field, for data that are not there or sizes that do not fit; a factory that
            may not be imported, is not there, raises, or returns no Task.
    """
    return made(task_builder(config), config)


def task_builder(config: TaskConfig) -> Callable[..., object]:
    """The function that makes the task: of the table, or the user's factory.

    Raises:
        MetaschedError: there is none of that name, or it may not be imported.
    """
    if config.factory is None:
        return find_row(TASKS, "task.name", config.name).builder
    if config.factory.startswith(f"{LIVE}:"):
        return find_live(config.factory)
    return find_function(config.factory, "task.factory")


def outside_code(config: TaskConfig) -> tuple[Callable[..., object], ...]:
    """The functions from outside the package that make a task, which its fingerprint must see.

    Raises:
        MetaschedError: see ``task_builder``.
    """
    if config.factory is not None:
        return (task_builder(config),)
    return tuple(row.builder for row in config.rows if from_outside(row))


def made(builder: Callable[..., object], config: TaskConfig) -> Task:
    """What a builder makes for a config.

    Raises:
        MetaschedError: see ``build_task``.
    """
    place = "task.name" if config.factory is None else "task.factory"
    try:
        task = builder(config) if config.factory is None else builder(**config.args)
        if config.pretrained:
            task = pretrained(task, config)
    except MetaschedError:
        raise
    except Exception as error:  # whatever the user's code raises
        if not config.outside:
            raise
        said = f"{config.label} raised {type(error).__name__}: {error}"
        fix = "mend it" if config.factory is None else "mend it, or correct task.args"
        raise MetaschedError(place, said, fix) from error
    if not isinstance(task, Task):
        kind = type(task).__name__
        problem = f"{config.label} returned {'a class' if isinstance(task, type) else f'a {kind}'}, not a Task"
        raise MetaschedError(place, problem, "return a metasched.Task, such as metasched.DataTask(...)")
    return task
