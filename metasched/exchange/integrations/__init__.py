"""Schedules in other software: a function of the step, callbacks of trainers, quantizers of other libraries.

Position is the trainer's own global step, so that a run that is resumed goes on where it was. Each module imports its
library when it is used, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from metasched.core.errors import MetaschedError

LayerValues = Mapping[str, Mapping[str, float]]  # layer name -> control -> value, as SchedulePlayer gives them
Apply = Callable[[LayerValues, int], object]  # what a callback calls before each step: with its values and its number


def missing(package: str, extra: str) -> MetaschedError:
    """The error for a library that is not installed.

    >>> str(missing("torchao", "torchao"))
    'torchao: is not installed; install metasched[torchao]'
    """
    return MetaschedError(package, "is not installed", f"install metasched[{extra}]")
