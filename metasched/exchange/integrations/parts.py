"""The parts of a layer that a driver sets."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from metasched.core.errors import MetaschedError, unknown_name

T = TypeVar("T")


def parts_of(model: nn.Module, name: str, kind: type[T]) -> list[T]:
    """The modules of a class in the module that a layer is named after.

    Raises:
        MetaschedError: the model has no such module, or that module nothing of the class.
    """
    modules = dict(model.named_modules())
    if name not in modules:
        raise unknown_name("layers", name, [known for known in modules if known])
    found = [module for module in modules[name].modules() if isinstance(module, kind)]
    if not found:
        problem = f"has no {kind.__name__}"
        raise MetaschedError(f"layers.{name}", problem, "quantize it, or play the schedule for the other layers only")
    return found
