"""Task objects of this process, by fingerprint: what ``metasched.learn(task, ...)`` trains when it gets an object."""

from __future__ import annotations

from collections.abc import Callable

from metasched.core.errors import MetaschedError
from metasched.tasks.base import Task

LIVE = "live"  # the module part of their factory, live:f<fingerprint>
_TASKS: dict[str, Callable[[], Task]] = {}


def register_live(task: Task) -> str:
    """Makes a task known to this process; the name of its factory."""
    name = f"{LIVE}:f{task.fingerprint()}"
    _TASKS[name] = lambda: task
    return name


def find_live(name: str) -> Callable[[], Task]:
    """The factory of a task object.

    Raises:
        MetaschedError: this process does not have it.
    """
    if name not in _TASKS:
        problem = "the task is an object of another process, or has changed"
        fix = "give a module-level function instead of a Task, or run in one process with workers=1"
        raise MetaschedError("task", problem, fix)
    return _TASKS[name]
