"""What inner runs train, by name: one row a data set."""

from __future__ import annotations

from collections.abc import Callable

from metasched.config.schema import TaskConfig
from metasched.core.errors import unknown_name
from metasched.tasks.base import Split, Stored, Task
from metasched.tasks.digits import digits_task
from metasched.tasks.imagenet import imagenet_task
from metasched.tasks.quadratic import default_quadratic, quadratic_task
from metasched.tasks.vision import npz_task, torchvision_task

__all__ = ["TASKS", "Split", "Stored", "Task", "build_task", "quadratic_task"]

TASKS: dict[str, Callable[[TaskConfig], Task]] = {
    "digits": digits_task,
    "mnist": torchvision_task,
    "fashion_mnist": torchvision_task,
    "cifar10": torchvision_task,
    "cifar10_npz": npz_task,
    "imagenet": imagenet_task,
    "quadratic": default_quadratic,
}


def build_task(config: TaskConfig) -> Task:
    """The task that a config describes, its inputs in float32 on the CPU (imagenet: on disk, but for validation).

    Raises:
        MetaschedError: with the path of the field, for data that are not there or sizes that do not fit.
    """
    if config.name not in TASKS:
        raise unknown_name("task.name", config.name, TASKS)
    return TASKS[config.name](config)
