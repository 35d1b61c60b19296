"""The parametric form of a schedule: from a learnable schedule to its record in a file, and back.

``export`` calls ``form_of`` for every schedule, also for one of many tasks, so that nobody else has to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metasched.exchange.extras import FormEntry
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.schedules.base import Schedule
from metasched.schedules.learnable import LearnableSchedule
from metasched.schedules.shared import SharedSchedule


def form_of(schedule: Schedule | SharedSchedule, method: MethodConfig) -> FormEntry | None:
    """The form of a schedule network or family on a hand-coded base, or of one that many tasks share.

    Args:
        schedule: anything that gives schedules.
        method: that plays it, with its parameters.

    Returns:
        None where a file can hold its table only: its base is not a hand-coded schedule of the method, all weights of a
        network differ from task to task, or it is no learnable schedule.
    """
    raise NotImplementedError


def schedule_of(
    form: FormEntry, method: MethodConfig, controls: Sequence[Control], features: Mapping[str, float]
) -> LearnableSchedule:
    """The schedule that a form is for a task.

    Args:
        form: from a file.
        method: that plays it, with its parameters.
        controls: all controls of the file.
        features: of the task, {name: x}; the form reads those that it names.

    Raises:
        MetaschedError: the method has no such base, or the numbers are not those of the controls.
    """
    raise NotImplementedError
