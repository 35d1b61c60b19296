"""The table of tasks: one row, a ``TaskSpec``, per ``task.name``. It does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metasched.core.lazy import Lazy, origin
from metasched.core.rows import check_row

if TYPE_CHECKING:
    from metasched.tasks.base import Task
    from metasched.tasks.config import TaskConfig

SIZES = ("train", "validation", "test", "batch")  # fields that say how many examples there are
IMAGES = (*SIZES, "model", "depth")  # what classification_task reads
IN_MEMORY = (*IMAGES, "pretrained")
OF_TABLES = ("target", "drop", "missing")


@dataclass(frozen=True)
class TaskSpec:
    """One row of the table of tasks.

    Attributes:
        name: ``task.name``.
        summary: description in a few words.
        builder: TaskConfig -> Task, its tensors in float32 on the CPU.
        reads: the fields of TaskConfig that the builder reads, beside ``data_seed``, ``width`` and ``steps``; others
            are refused, as they would be ignored.
    """

    name: str
    summary: str
    builder: Callable[[TaskConfig], Task]
    reads: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where its builder is defined."""
        return origin(self.builder)


TASKS: dict[str, TaskSpec] = {}


def register_task(spec: TaskSpec) -> TaskSpec:
    """Add a task to the table of this process; ``task.name`` can then be its name.

    Call it at the top level of the task's module: worker processes import the module and then know the task too.

    Raises:
        MetaschedError: an invalid name, or a name that is in use.
    """
    check_row(TASKS, "task.name", spec)
    TASKS[spec.name] = spec
    return spec


_TORCHVISION = Lazy("metasched.tasks.vision:torchvision_task")

for _row in (
    TaskSpec("digits", "8x8, comes with scikit-learn", Lazy("metasched.tasks.digits:digits_task"), IN_MEMORY),
    TaskSpec("mnist", "28x28", _TORCHVISION, ("root", "download", *IN_MEMORY)),
    TaskSpec("fashion_mnist", "28x28", _TORCHVISION, ("root", "download", *IN_MEMORY)),
    TaskSpec("cifar10", "32x32, RGB", _TORCHVISION, ("root", "download", *IN_MEMORY)),
    TaskSpec("cifar100", "32x32, RGB, 100 classes", _TORCHVISION, ("root", "download", *IN_MEMORY)),
    TaskSpec(
        "cifar10_npz",
        "12,000 images of it in a numpy file",
        Lazy("metasched.tasks.vision:npz_task"),
        ("root", *IN_MEMORY),
    ),
    TaskSpec(
        "imagenet", "from image files", Lazy("metasched.tasks.imagenet:imagenet_task"), ("root", "image_size", *IMAGES)
    ),
    TaskSpec(
        "text",
        "next character of Python's documentation",
        Lazy("metasched.tasks.text:text_task"),
        ("root", "depth", "pretrained", *SIZES),
    ),
    TaskSpec(
        "tabular",
        "rows of a CSV file of one's own",
        Lazy("metasched.tasks.tabular:tabular_task"),
        ("root", *OF_TABLES, *IN_MEMORY),
    ),
    TaskSpec("quadratic", "least squares in closed form", Lazy("metasched.tasks.quadratic:default_quadratic")),
    TaskSpec("rounding", "layers to be rounded, at random", Lazy("metasched.tasks.rounding:rounding_task"), SIZES),
):
    register_task(_row)
