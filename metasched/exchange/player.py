"""Playing a schedule file: on another horizon, on another network, in any training loop."""

from __future__ import annotations

import operator
import os
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.layer import Layer
from metasched.exchange.format import ScheduleFile, Spent
from metasched.exchange.schedule_file import read_schedule
from metasched.methods.base import Control
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.interpolation import interpolate


class Match(NamedTuple):
    """Which two of the file's layers a layer is played from: (1 - weight) of ``below`` and weight of ``above``."""

    below: int
    above: int
    weight: float


def match_layers(known: Sequence[Layer], layers: Sequence[Layer]) -> list[Match]:
    """Match the layers of a network with those of a schedule file.

    The same layers (names and kinds, in the same order) are matched one to one. Otherwise each layer lies, by its
    relative depth, between the two nearest known layers of its kind; beyond the first or the last of them it is
    matched with that one. A layer of a kind that the file does not have lies between those of any kind.
    """
    if [(layer.name, layer.kind) for layer in known] == [(layer.name, layer.kind) for layer in layers]:
        return [Match(i, i, 0.0) for i in range(len(layers))]
    return [_match(known, layer) for layer in layers]


def warn_of_other_kinds(known: Sequence[Layer], layers: Sequence[Layer], where: str) -> None:
    """Says which layers are played by their depth alone, because a schedule has no layer of their kind.

    Args:
        known: layers of the schedule.
        layers: layers of the network.
        where: what the warning begins with.
    """
    kinds = {layer.kind for layer in known}
    other = [layer for layer in layers if layer.kind not in kinds]
    if other:
        names, has = ", ".join(layer.name for layer in other), ", ".join(sorted(kinds))
        what = f"the schedule has layers of kind {has} only: {other[0].kind} layers ({names}) follow their depth alone"
        warnings.warn(f"{where}: {what}", stacklevel=3)


class PlayedSchedule:
    """The schedule in a file: ``schedule(progress, layers) -> {control: [T, L]}``.

    Values are computed in float64, whatever the dtype of progress, and are exactly the file's at its knots and layers.
    For other layers see ``match_layers``.
    """

    def __init__(self, file: ScheduleFile) -> None:
        self.file = file
        self.layers = tuple(Layer(**asdict(layer)) for layer in file.layers)
        self._knots = torch.tensor(file.progress, dtype=torch.float64)
        self._values = {
            control.name: torch.tensor(file.values[control.name], dtype=torch.float64).T for control in file.controls
        }

    def __call__(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values [T, L] of each control, in the dtype of ``progress``."""
        device = progress.device
        matches = match_layers(self.layers, layers)
        below = torch.tensor([m.below for m in matches], device=device)
        above = torch.tensor([m.above for m in matches], device=device)
        weight = torch.tensor([m.weight for m in matches], dtype=torch.float64, device=device)
        knots, steps = self._knots.to(device), progress.to(torch.float64)
        played = {}
        for name, values in self._values.items():
            known = interpolate(steps, knots, values.to(device), self.file.interpolation)
            low, high = known[:, below], known[:, above]
            mixed = low + weight * (high - low)
            # Rounding must not carry a value past both of its neighbours.
            mixed = mixed.clamp(torch.minimum(low, high), torch.maximum(low, high))
            played[name] = mixed.to(progress.dtype)
        return played


def spent_on(schedule: Schedule) -> tuple[Spent, ...]:
    """What finding a schedule took, as its file says; nothing for a hand-coded one."""
    return schedule.file.provenance.spent if isinstance(schedule, PlayedSchedule) else ()


class SchedulePlayer:
    """Hands a training loop of your own the values of its next step.

        player = SchedulePlayer("schedule.json", total_steps=len(loader) * epochs)
        for batch in ...:
            controls = player.step()
            noise = controls["features.0"]["noise_scale"]

    The values of step t are those of progress t / (total_steps - 1), exactly, in float64; beyond the last step they
    stay at the last step's. The only state is the number of steps taken.

    Args:
        schedule: the path of a schedule file, what ``read_schedule`` gave, or any schedule.
        total_steps: length of the run, at least 1.
        layers: of the network, from ``quantize(...).layers``; default: the layers in the file.

    Raises:
        MetaschedError: an unreadable file, no steps, or no layers.
    """

    def __init__(
        self,
        schedule: str | os.PathLike[str] | ScheduleFile | Schedule,
        total_steps: int,
        layers: Sequence[Layer] | None = None,
    ) -> None:
        if isinstance(schedule, str | os.PathLike):
            schedule = read_schedule(schedule)
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
        """Values {layer: {control: value}} of a step, counted from 0; the position stays where it is."""
        if operator.index(step) < 0:
            raise MetaschedError("step", f"must be at least 0, got {step}", "steps count from 0")
        step = min(step, self.total_steps - 1)
        with torch.no_grad():
            values = self._schedule(self._progress[step : step + 1], self.layers)
        rows = {control: row[0].tolist() for control, row in values.items()}
        return {layer.name: {control: row[i] for control, row in rows.items()} for i, layer in enumerate(self.layers)}

    def step(self) -> dict[str, dict[str, float]]:
        """Values of the current position, which then moves on by one."""
        values = self._current
        self._move(self._position + 1)
        return values

    def value(self, control: str, layer: str) -> float:
        """One control of one layer at the current position."""
        if layer not in self._current:
            raise unknown_name("layer", layer, self._current)
        if control not in self._current[layer]:
            raise unknown_name("control", control, self._current[layer])
        return self._current[layer][control]

    def state_dict(self) -> dict[str, int]:
        """The position: ``{"step": n}``, n steps taken."""
        return {"step": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of a ``state_dict``."""
        step = state.get("step")
        if set(state) != {"step"} or type(step) is not int or step < 0:
            raise MetaschedError("state_dict", 'must be {"step": n} with n at least 0', "pass what state_dict() gave")
        self._move(step)

    def _move(self, step: int) -> None:
        self._current = self.at(step)
        self._position = step


def check_method(file: ScheduleFile, method_name: str, controls: Sequence[Control], path: str) -> None:
    """Refuse a schedule file that a method cannot be driven by.

    Args:
        file: the schedule.
        method_name: the method's name.
        controls: what the method declares.
        path: what error messages call the file.

    Raises:
        MetaschedError: it is for another method, lacks a control, or leaves open what the method's control rules out:
            values outside its range, moves against its direction, another end, less of the run spent there.
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
