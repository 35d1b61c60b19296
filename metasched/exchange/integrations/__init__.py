"""Schedules in other software: functions of the step, callbacks of trainers, and quantizers of other libraries.

The position is the trainer's global step, so that a resumed run continues at the right values. Each module imports its
library only when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from metasched.core.extras import missing

__all__ = ["Apply", "LayerValues", "missing"]

LayerValues = Mapping[str, Mapping[str, float]]  # layer name -> control -> value, from SchedulePlayer
Apply = Callable[[LayerValues, int], object]  # called before each step, with its values and its number
