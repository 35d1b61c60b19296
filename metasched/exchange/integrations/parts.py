"""The submodules of a layer that an integration sets."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from metasched.core.errors import MetaschedError, unknown_name

T = TypeVar("T")


def parts_of(model: nn.Module, name: str, kind: type[T]) -> list[T]:
    """All submodules of class ``kind`` in the module ``name`` of the model.

    Raises:
        MetaschedError: the model has no such module, or the module contains no such submodule.
    """
    modules = dict(model.named_modules())
    if name not in modules:
        raise unknown_name("layers", name, [known for known in modules if known])
    found = [module for module in modules[name].modules() if isinstance(module, kind)]
    if not found:
        problem = f"has no {kind.__name__}"
        raise MetaschedError(f"layers.{name}", problem, "quantize it, or play the schedule for the other layers only")
    return found
