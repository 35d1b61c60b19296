"""Plays a schedule file in any training loop, also with another number of steps and on another network."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.features import features_of
from metasched.core.layer import Layer
from metasched.exchange.format import ScheduleFile, Spent
from metasched.exchange.played import PlayedSchedule, for_task, warn_of_guesses
from metasched.exchange.schedule_file import read_schedule
from metasched.methods.base import Control
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.curves import HandCoded
from metasched.schedules.feedback import is_closed_loop
from metasched.schedules.table import hand_coded, method_of_hand_coded


def load(schedule: str | os.PathLike[str]) -> HandCoded | PlayedSchedule:
    """The schedule that a name or a path means; it is played on any layers, and its ``method`` is what plays it.

    Args:
        schedule: the name of a schedule that comes with the package, see ``list_schedules``; or the path of a schedule
            file, with a path separator or the ending ``.json``.

    Raises:
        MetaschedError: no schedule of that name, or the file cannot be read.

    >>> load("inq_linear").method.name, load("digits_inq").method.name
    ('inq', 'inq')
    """
    known = method_of_hand_coded()
    if isinstance(schedule, str) and schedule in known:
        return hand_coded(known[schedule])[schedule]
    return PlayedSchedule(read_schedule(schedule))


def spent_on(schedule: Schedule) -> tuple[Spent, ...]:
    """The cost of finding a schedule, from its file; empty if it is not from a file."""
    return schedule.file.provenance.spent if isinstance(schedule, PlayedSchedule) else ()


class SchedulePlayer:
    """Gives your own training loop the values of the controls at each step.

        player = SchedulePlayer("schedule.json", total_steps=len(loader) * epochs)
        for batch in ...:
            controls = player.step()
            noise = controls["features.0"]["weight_noise"]

    The values of step t are those at progress t / (total_steps - 1), computed in float64; after the last step they do
    not change. The only state is the number of steps taken.

    Args:
        schedule: name or path as for ``load``, result of ``read_schedule``, or any schedule.
        total_steps: length of the run in steps, at least 1.
        layers: layers of the network, from ``quantize(...).layers``; default: those of the file. A hand-coded schedule
            needs them.
        rate, batches_per_epoch, pretrained: of the task, for a file whose form depends on them: the largest learning
            rate, the batches in one pass of the training data, whether training starts from a pretrained network.
        closed_loop: whether you turn the gains of a closed-loop schedule into values, as ``prepare`` does; else
            such a schedule is refused, because this player sees neither the loss nor the weights.

    Attributes:
        schedule: what it plays, for this task.

    Raises:
        MetaschedError: the file cannot be read, no schedule of that name, there are no steps or no layers, or the
            schedule is closed-loop.
    """

    def __init__(
        self,
        schedule: str | os.PathLike[str] | ScheduleFile | Schedule,
        total_steps: int,
        layers: Sequence[Layer] | None = None,
        *,
        rate: float | None = None,
        batches_per_epoch: float | None = None,
        pretrained: bool | None = None,
        closed_loop: bool = False,
    ) -> None:
        if isinstance(schedule, str | os.PathLike):
            schedule = load(schedule)
        if isinstance(schedule, ScheduleFile):
            schedule = PlayedSchedule(schedule)
        if layers is None and isinstance(schedule, PlayedSchedule):
            layers = schedule.layers
        if not layers:
            raise MetaschedError("layers", "none given", "pass the layers of the network")
        if total_steps < 1:
            raise MetaschedError("total_steps", f"must be at least 1, got {total_steps}", "pass the length of the run")
        known = (schedule.features or {}) if isinstance(schedule, PlayedSchedule) else {}
        about = {"rate": rate, "batches_per_epoch": batches_per_epoch, "pretrained": pretrained}
        own = tuple(layers)
        schedule = for_task(schedule, lambda: {**known, **features_of(own, total_steps, **about)})
        warn_of_guesses(schedule, layers, "layers")
        self.total_steps = total_steps
        self.layers = tuple(layers)
        self.schedule: Schedule = schedule
        self._progress = progress_of_steps(total_steps)
        self._position = 0
        self._current = self.at(0)
        if not closed_loop and is_closed_loop(next(iter(self._current.values()))):
            problem = "is closed-loop, and this player sees neither the loss nor the weights"
            raise MetaschedError("schedule", problem, "play it with metasched.prepare, or remove its field feedback")

    def __repr__(self) -> str:
        return f"SchedulePlayer({self.schedule!r}, step {self._position} of {self.total_steps})"

    def at(self, step: int) -> dict[str, dict[str, float]]:
        """Values {layer: {control: value}} at a step, counted from 0; does not change the position."""
        if operator.index(step) < 0:
            raise MetaschedError("step", f"must be at least 0, got {step}", "steps count from 0")
        step = min(step, self.total_steps - 1)
        with torch.no_grad():
            values = self.schedule(self._progress[step : step + 1], self.layers)
        rows = {control: row[0].tolist() for control, row in values.items()}
        return {layer.name: {control: row[i] for control, row in rows.items()} for i, layer in enumerate(self.layers)}

    def step(self) -> dict[str, dict[str, float]]:
        """Values {layer: {control: value}} at the current position; then advances the position by one."""
        values = self._current
        self._move(self._position + 1)
        return values

    def value(self, control: str, layer: str) -> float:
        """Value of one control of one layer at the current position."""
        if layer not in self._current:
            raise unknown_name("layer", layer, self._current)
        if control not in self._current[layer]:
            raise unknown_name("control", control, self._current[layer])
        return self._current[layer][control]

    def state_dict(self) -> dict[str, int]:
        """The position: ``{"step": n}``, n steps taken."""
        return {"step": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the position from a ``state_dict``.

        Raises:
            MetaschedError: ``state`` does not come from ``state_dict``.
        """
        step = state.get("step")
        if set(state) != {"step"} or type(step) is not int or step < 0:
            raise MetaschedError(
                "state_dict", 'must be {"step": n} with n at least 0', "pass the result of state_dict()"
            )
        self._move(step)

    def _move(self, step: int) -> None:
        self._current = self.at(step)
        self._position = step


def check_method(file: ScheduleFile, method_name: str, controls: Sequence[Control], path: str) -> None:
    """Raises if a method cannot use a schedule file.

    Args:
        file: the schedule.
        method_name: name of the method.
        controls: the controls that the method declares.
        path: prefix of error messages, usually the path of the file.

    Raises:
        MetaschedError: the file is for another method, lacks a control, or declares a control less strictly than the
            method: a larger range, another direction or end, or a shorter dwell.
    """
    if file.method.name != method_name:
        problem = f"is for method {file.method.name!r}, not {method_name!r}"
        raise MetaschedError(f"{path}: method.name", problem, f"set method.name: {file.method.name}")
    index = {control.name: i for i, control in enumerate(file.controls)}
    for control in controls:
        if control.name not in index:
            raise MetaschedError(f"{path}: controls", f"lacks {control.name}", f"{method_name} needs it")
        i = index[control.name]
        declared = file.controls[i]
        for field, promised, needed, kept in (
            ("low", declared.low, control.low, declared.low >= control.low),
            ("high", declared.high, control.high, declared.high <= control.high),
            ("direction", declared.direction, control.direction, control.direction in ("free", declared.direction)),
            ("end", declared.end, control.end, control.end in (None, declared.end)),
            ("dwell", declared.dwell, control.dwell, declared.dwell >= control.dwell),
        ):
            if not kept:
                problem = f"{control.name} has {promised!r}, {method_name} needs {needed!r}"
                raise MetaschedError(f"{path}: controls[{i}].{field}", problem, "export it for this method")
