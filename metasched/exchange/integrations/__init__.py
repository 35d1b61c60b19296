"""Schedules in other software: functions of the step, callbacks of trainers, and quantizers of other libraries.

The position is the trainer's global step, so that a resumed run continues at the right values. Each module imports its
library only when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from metasched.core.errors import MetaschedError

LayerValues = Mapping[str, Mapping[str, float]]  # layer name -> control -> value, from SchedulePlayer
Apply = Callable[[LayerValues, int], object]  # called before each step, with its values and its number


def missing(package: str, extra: str) -> MetaschedError:
    """The error for a missing optional library.

    >>> str(missing("torchao", "torchao"))
    'torchao: is not installed; install metasched[torchao]'
    """
    return MetaschedError(package, "is not installed", f"install metasched[{extra}]")
