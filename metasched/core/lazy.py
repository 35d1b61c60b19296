"""Functions that are imported at their first call, so that tables of them are quick to load."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Lazy:
    """A function or class that is imported at its first call.

    Attributes:
        place: ``package.module:name``.

    >>> Lazy("math:sqrt")(4)
    2.0
    """

    place: str

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Imports the function and calls it."""
        module, _, name = self.place.partition(":")
        return getattr(import_module(module), name)(*arguments, **keywords)


def origin(function: Any) -> str:
    """Where a function or class is defined, as ``package.module.name``.

    >>> origin(Lazy("math:sqrt")), origin(Lazy)
    ('math.sqrt', 'metasched.core.lazy.Lazy')
    """
    if isinstance(function, Lazy):
        return function.place.replace(":", ".")
    return f"{function.__module__}.{function.__qualname__}"
