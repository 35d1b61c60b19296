"""Plays a schedule file in any training loop, also with another number of steps and on another network."""

from __future__ import annotations

import operator
import os
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from metasched.core.errors import MetaschedError, MetaschedWarning, unknown_name
from metasched.core.layer import Layer
from metasched.exchange.format import ScheduleFile, Spent
from metasched.exchange.schedule_file import read_schedule
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.curves import HandCoded
from metasched.schedules.interpolation import interpolate
from metasched.schedules.table import hand_coded, method_of_hand_coded


class Match(NamedTuple):
    """The two layers of the file for one layer: (1 - weight) times ``below`` plus weight times ``above``."""

    below: int
    above: int
    weight: float


def match_layers(known: Sequence[Layer], layers: Sequence[Layer]) -> list[Match]:
    """Matches the layers of a network with those of a schedule file.

    Equal layers (names and kinds, in the same order) are matched one to one. Otherwise, each layer is matched by its
    relative depth with the two nearest layers of its kind in the file, or with the first or last one if it lies outside
    their range. If the file has no layer of its kind, layers of all kinds are used.
    """
    if [(layer.name, layer.kind) for layer in known] == [(layer.name, layer.kind) for layer in layers]:
        return [Match(i, i, 0.0) for i in range(len(layers))]
    return [_match(known, layer) for layer in layers]


def warn_of_other_kinds(known: Sequence[Layer], layers: Sequence[Layer], where: str) -> None:
    """Warns of layers that are matched by depth only, because the schedule has no layer of their kind.

    Args:
        known: layers of the schedule.
        layers: layers of the network.
        where: prefix of the warning.
    """
    kinds = {layer.kind for layer in known}
    other = [layer for layer in layers if layer.kind not in kinds]
    if other:
        names, has = ", ".join(layer.name for layer in other), ", ".join(sorted(kinds))
        what = f"the schedule has layers of kind {has} only: {other[0].kind} layers ({names}) follow their depth alone"
        warnings.warn(f"{where}: {what}", MetaschedWarning, stacklevel=3)


class PlayedSchedule:
    """The schedule in a file: ``schedule(progress, layers) -> {control: [T, L]}``.

    Values are computed in float64 for any dtype of progress; at the file's own knots and layers they equal its values.
    For other layers see ``match_layers``.

    Attributes:
        file: the file.
        layers: those of the file.
        knots: [K] progress, float64, at which the file has values.
    """

    def __init__(self, file: ScheduleFile) -> None:
        self.file = file
        self.layers = tuple(Layer(**asdict(layer)) for layer in file.layers)
        self.knots = torch.tensor(file.progress, dtype=torch.float64)
        self._values = {
            control.name: torch.tensor(file.values[control.name], dtype=torch.float64).T for control in file.controls
        }

    @property
    def method(self) -> MethodConfig:
        """The method that plays it, with the parameters that it was made for."""
        return MethodConfig(name=self.file.method.name, **self.file.method.parameters)

    def __call__(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """The values [T, L] of each control at progress [T], in the dtype of ``progress``."""
        device = progress.device
        matches = match_layers(self.layers, layers)
        below = torch.tensor([m.below for m in matches], device=device)
        above = torch.tensor([m.above for m in matches], device=device)
        weight = torch.tensor([m.weight for m in matches], dtype=torch.float64, device=device)
        knots, steps = self.knots.to(device), progress.to(torch.float64)
        played = {}
        for name, values in self._values.items():
            known = interpolate(steps, knots, values.to(device), self.file.interpolation)
            low, high = known[:, below], known[:, above]
            mixed = low + weight * (high - low)
            # rounding must not move a value outside the interval of its neighbours
            mixed = mixed.clamp(torch.minimum(low, high), torch.maximum(low, high))
            played[name] = mixed.to(progress.dtype)
        return played


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

    Raises:
        MetaschedError: the file cannot be read, no schedule of that name, or there are no steps or no layers.
    """

    def __init__(
        self,
        schedule: str | os.PathLike[str] | ScheduleFile | Schedule,
        total_steps: int,
        layers: Sequence[Layer] | None = None,
    ) -> None:
        if isinstance(schedule, str | os.PathLike):
            schedule = load(schedule)
        if isinstance(schedule, ScheduleFile):
            schedule = PlayedSchedule(schedule)
        if layers is None and isinstance(schedule, PlayedSchedule):
            layers = schedule.layers
        if not layers:
            raise MetaschedError("layers", "none given", "pass the layers of the network")
        if isinstance(schedule, PlayedSchedule):
            warn_of_other_kinds(schedule.layers, layers, "layers")
        if total_steps < 1:
            raise MetaschedError("total_steps", f"must be at least 1, got {total_steps}", "pass the length of the run")
        self.total_steps = total_steps
        self.layers = tuple(layers)
        self._schedule: Schedule = schedule
        self._progress = progress_of_steps(total_steps)
        self._position = 0
        self._current = self.at(0)

    def at(self, step: int) -> dict[str, dict[str, float]]:
        """Values {layer: {control: value}} at a step, counted from 0; does not change the position."""
        if operator.index(step) < 0:
            raise MetaschedError("step", f"must be at least 0, got {step}", "steps count from 0")
        step = min(step, self.total_steps - 1)
        with torch.no_grad():
            values = self._schedule(self._progress[step : step + 1], self.layers)
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


def _match(known: Sequence[Layer], layer: Layer) -> Match:
    same = sorted((other.depth, i) for i, other in enumerate(known) if other.kind == layer.kind)
    same = same or sorted((other.depth, i) for i, other in enumerate(known))
    above = bisect_right(same, layer.depth, key=lambda other: other[0])
    low, i = same[max(above - 1, 0)]
    high, j = same[min(above, len(same) - 1)]
    return Match(i, j, (layer.depth - low) / (high - low) if i != j else 0.0)
