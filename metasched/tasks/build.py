"""From the section ``task`` of an experiment to the task."""

from __future__ import annotations

from collections.abc import Callable

from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.imports import find_function
from metasched.tasks.base import Task
from metasched.tasks.config import TaskConfig
from metasched.tasks.live import LIVE, find_live
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
        if config.name not in TASKS:
            raise unknown_name("task.name", config.name, TASKS)
        return TASKS[config.name].builder
    if config.factory.startswith(f"{LIVE}:"):
        return find_live(config.factory)
    return find_function(config.factory, "task.factory")


def made(builder: Callable[..., object], config: TaskConfig) -> Task:
    """What a builder makes for a config.

    Raises:
        MetaschedError: see ``build_task``.
    """
    if config.factory is None:
        task = builder(config)
    else:
        try:
            task = builder(**config.args)
        except MetaschedError:
            raise
        except Exception as error:  # whatever the user's code raises
            said = f"{config.factory} raised {type(error).__name__}: {error}"
            raise MetaschedError("task.factory", said, "mend it, or correct task.args") from error
    if not isinstance(task, Task):
        kind = type(task).__name__
        problem = f"{config.label} returned {'a class' if isinstance(task, type) else f'a {kind}'}, not a Task"
        raise MetaschedError("task.factory", problem, "return a metasched.Task, such as metasched.DataTask(...)")
    return task
