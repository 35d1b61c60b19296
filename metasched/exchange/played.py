"""A schedule file as a schedule: its table at its own layers, and on others its form, or the layers that match."""

from __future__ import annotations

import copy
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.core.layer import Layer
from metasched.core.shown import preformatted
from metasched.exchange.extras import FormEntry, reads
from metasched.exchange.form import controls_of, layers_of, method_of, schedule_of
from metasched.exchange.format import ScheduleFile
from metasched.methods.config import MethodConfig
from metasched.schedules.base import Schedule
from metasched.schedules.feedback import FEATURES, gain_curves, numbers_of
from metasched.schedules.interpolation import interpolate

_ROUNDING = 1e-12  # in units of the largest value of a control


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


def warn_of_guesses(schedule: Schedule, layers: Sequence[Layer], where: str) -> None:
    """Warns of what a schedule from a file has to guess, in one line each.

    These are layers of a kind that it was not learned for (of many tasks, a file does not say what kinds they had); and
    features of the task that its form depends on and that are not known.

    Args:
        schedule: any; for its task already.
        layers: of the network.
        where: prefix of the warnings.
    """
    if not isinstance(schedule, PlayedSchedule):
        return
    form, kinds = schedule.file.form, {layer.kind for layer in schedule.layers}
    other = [layer for layer in layers if layer.kind not in kinds]
    if other and not (form and form.features):
        names, has = ", ".join(layer.name for layer in other), ", ".join(sorted(kinds))
        by_network = form is not None and form.kind == "network"
        how = "follow a network that has not seen them" if by_network else "follow their depth alone"
        what = f"the schedule has layers of kind {has} only: {other[0].kind} layers ({names}) {how}"
        warnings.warn(f"{where}: {what}", MetaschedWarning, stacklevel=3)
    unknown = [name for name in schedule.reads if schedule.features is not None and name not in schedule.features]
    if unknown:
        what = f"the schedule depends on {', '.join(unknown)}, not known here, which counts as that of a mean task"
        warnings.warn(f"{where}: {what}", MetaschedWarning, stacklevel=3)


def check_open_loop(schedule: Schedule, path: str) -> None:
    """Refuses a closed-loop schedule, where a function of progress and layers alone is needed.

    Raises:
        MetaschedError: it has feedback; ``path`` is what the message begins with.
    """
    if isinstance(schedule, PlayedSchedule) and schedule.file.feedback:
        problem = "is the file of a closed-loop schedule, and this takes a function of progress and layers alone"
        raise MetaschedError(path, problem, "name another schedule, or remove the field feedback of the file")


class PlayedSchedule:
    """The schedule in a file: ``schedule(progress, layers) -> {control: [T, L]}``.

    Values are computed in float64 for any dtype of progress; at the file's own knots and layers they equal its values.
    On other layers, a file with a form gives the form's values there, and one without those of the layers that
    ``match_layers`` finds. A form may depend on the task too: see ``at``. Of a file with feedback there are also the
    gains, {control:feature: [T, L]} (schedules/feedback.py).

    Attributes:
        file: the file.
        layers: those of the file.
        knots: [K] progress, float64, at which the file has values.
        features: of the task that it is played on, {name: x}; None: of the task that it was learned on.
    """

    def __init__(self, file: ScheduleFile) -> None:
        self.file = file
        self.layers = layers_of(file)
        self.knots = torch.tensor(file.progress, dtype=torch.float64)
        self.features: Mapping[str, float] | None = None
        self._values = {
            control.name: torch.tensor(file.values[control.name], dtype=torch.float64).T for control in file.controls
        }
        # the form, at the layers of the last call
        self._evaluated: tuple[tuple[Layer, ...], dict[str, torch.Tensor]] | None = None

    def __repr__(self) -> str:
        source = self.file.provenance
        return (
            f"PlayedSchedule({source.name}: {source.kind}, method {self.file.method.name}, {len(self.layers)} layers)"
        )

    def _repr_html_(self) -> str:
        """What ``metasched show`` prints."""
        from metasched.exchange.summary import schedule_text

        return preformatted(schedule_text(self.file))

    @property
    def method(self) -> MethodConfig:
        """The method that plays it, with the parameters that it was made for."""
        return MethodConfig(name=self.file.method.name, **self.file.method.parameters)

    @property
    def reads(self) -> tuple[str, ...]:
        """The features of a task that its values depend on; empty for a file without a form."""
        return reads(self.file.form) if self.file.form else ()

    def at(self, features: Mapping[str, float]) -> PlayedSchedule:
        """The schedule for a task: features that are not known count as those of a mean task.

        Args:
            features: of the task, {name: x}, see ``metasched.core.features.features_of``.
        """
        other = copy.copy(self)
        other.features, other._evaluated = dict(features), None
        return other

    def __call__(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """The values [T, L] of each control at progress [T], in the dtype of ``progress``."""
        form, own = self.file.form, tuple(layers) == self.layers
        if form is None or (own and (self.features is None or not self.reads)):
            return self._by_table(progress, layers) | self._gains(progress, layers)
        knots, steps = self.knots.to(progress.device), progress.to(torch.float64)
        values = self._by_form(form, tuple(layers))
        played = {
            name: interpolate(steps, knots, v.to(progress.device), "linear").to(progress.dtype)
            for name, v in values.items()
        }
        return played | self._gains(progress, layers)

    def _gains(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """The gains {control:feature: [T, L]} of a file with feedback; those that it does not name are 0."""
        numbers = {(gain.control, gain.feature): gain.numbers for gain in self.file.feedback}
        found: dict[str, torch.Tensor] = {}
        for control in controls_of(self.file):
            if any(name == control.name for name, _ in numbers):
                none = (0.0,) * numbers_of(control)
                rows = [numbers.get((control.name, feature), none) for feature in FEATURES]
                table = torch.tensor(rows, dtype=torch.float64, device=progress.device)
                curves = gain_curves(control, table, progress.to(torch.float64), layers)
                found |= {name: v.to(progress.dtype) for name, v in curves.items()}
        return found

    def _by_form(self, form: FormEntry, layers: tuple[Layer, ...]) -> dict[str, torch.Tensor]:
        """The values [K, L] of the form at the knots, remembered for the layers of the last call."""
        if self._evaluated is None or self._evaluated[0] != layers:
            task = self.file.task if self.features is None else self.features
            controls = controls_of(self.file)
            with torch.no_grad():
                found = schedule_of(form, method_of(self.file), controls, task).at_knots(layers)
            for c in controls:
                inside = found[c.name].clamp(c.low, c.high)
                if not ((found[c.name] - inside).abs() <= _ROUNDING * max(1, abs(c.low), abs(c.high))).all():  # NaN too
                    problem = f"leaves the range of {c.name} on these layers, [{c.low!r}, {c.high!r}]"
                    raise MetaschedError("form", problem, "remove the form, or play it on its own layers")
                found[c.name] = inside
            self._evaluated = layers, found
        return self._evaluated[1]

    def _by_table(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
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


def for_task(schedule: Schedule, features: Callable[[], Mapping[str, float]]) -> Schedule:
    """A schedule for a task, whose features {name: x} are asked for only if the schedule depends on them."""
    return schedule.at(features()) if isinstance(schedule, PlayedSchedule) and schedule.reads else schedule


def _match(known: Sequence[Layer], layer: Layer) -> Match:
    same = sorted((other.depth, i) for i, other in enumerate(known) if other.kind == layer.kind)
    same = same or sorted((other.depth, i) for i, other in enumerate(known))
    above = bisect_right(same, layer.depth, key=lambda other: other[0])
    low, i = same[max(above - 1, 0)]
    high, j = same[min(above, len(same) - 1)]
    return Match(i, j, (layer.depth - low) / (high - low) if i != j else 0.0)
