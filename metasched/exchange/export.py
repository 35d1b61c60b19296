"""Export of a schedule: samples it at knots and builds the record of a schedule file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.exchange.extras import GainEntry, RecipeEntry
from metasched.exchange.format import ControlEntry, Provenance, ScheduleFile
from metasched.exchange.schedule_file import validated

if TYPE_CHECKING:
    import torch

    from metasched.methods.base import Control
    from metasched.methods.config import MethodConfig
    from metasched.schedules.base import Schedule
    from metasched.schedules.shared import SharedSchedule

_EXACT = 1e-12


def export(
    schedule: Schedule | SharedSchedule,
    *,
    method_name: str,
    method_parameters: Mapping[str, str | bool | int | float | None],
    controls: Sequence[Control],
    layers: Sequence[Layer],
    knots: torch.Tensor,
    interpolation: Literal["linear", "previous"],
    provenance: Provenance,
    task: Mapping[str, float] | None = None,
    recipe: RecipeEntry | None = None,
) -> ScheduleFile:
    """Samples a schedule at the knots, in float64.

    Between knots where the schedule itself is linear (or constant, for ``previous``), the file reproduces it exactly;
    elsewhere it is exact at the knots only. Where the schedule is a schedule network or family on a hand-coded base, or
    one that many tasks share, the file has its form too (form.py), and plays it on other layers; a schedule from a file
    keeps its form. A closed-loop one has its gains in the file.

    Args:
        schedule: returns at least the values of ``controls``; or one that many tasks share.
        method_name: name of the method.
        method_parameters: fixed parameters of the method.
        controls: the controls to export, as the method declares them.
        layers: the L layers at which the schedule is sampled.
        knots: [K] progress, float64, increasing from 0 to 1.
        interpolation: between the knots.
        provenance: origin of the schedule.
        task: features of the task that it was learned on, {name: x}; the table of a shared schedule is for this task.
        recipe: which tensors were quantized.

    Raises:
        MetaschedError: a value violates the range, direction or end of its control; the message names its place.
    """
    import torch

    from metasched.exchange.form import check_form, form_of
    from metasched.exchange.played import PlayedSchedule
    from metasched.schedules.shared import SharedSchedule

    assert knots.dtype == torch.float64, knots.dtype
    own = schedule.at(task or {}) if isinstance(schedule, SharedSchedule) else schedule
    sampled = own(knots, layers)
    config = _configured(method_name, method_parameters)
    form = None
    if config is not None and interpolation == "linear" and _knots_of(own).equal(knots):
        form = schedule.file.form if isinstance(schedule, PlayedSchedule) else form_of(schedule, config)
        if isinstance(schedule, PlayedSchedule) and form is not None and task is None:
            task = schedule.file.task if schedule.features is None else schedule.features
    tree = {
        "method": {"name": method_name, "parameters": dict(method_parameters)},
        "controls": [_entry(control) for control in controls],
        "progress": knots.tolist(),
        "layers": [{k: v for k, v in asdict(layer).items() if k != "key"} for layer in layers],
        "values": {control.name: sampled[control.name].double().T.tolist() for control in controls},
        "interpolation": interpolation,
        "provenance": provenance,
        "form": form,
        "task": dict(task or {}),
        "recipe": recipe,
        "feedback": _feedback(schedule),
    }
    file = validated(tree)
    if form is None:
        return file
    try:
        check_form(file, _EXACT)
    except MetaschedError:
        if not isinstance(schedule, PlayedSchedule):
            raise
        return validated({**tree, "form": None})  # of a file for other controls or parameters of the method
    return file


def _feedback(schedule: Schedule | SharedSchedule) -> tuple[GainEntry, ...]:
    """The gains of a closed-loop schedule."""
    from metasched.exchange.played import PlayedSchedule
    from metasched.schedules.feedback import FEATURES, FeedbackSchedule

    if isinstance(schedule, PlayedSchedule):
        return schedule.file.feedback
    if not isinstance(schedule, FeedbackSchedule):
        return ()
    return tuple(
        GainEntry(control=name, feature=feature, numbers=tuple(row))
        for name, gains in schedule.gains.items()
        for feature, row in zip(FEATURES, gains.tolist(), strict=True)
    )


def _configured(name: str, parameters: Mapping[str, str | bool | int | float | None]) -> MethodConfig | None:
    """The method that plays the schedule; None for one that is not in the table, whose bases have no names."""
    from metasched.methods import METHODS
    from metasched.methods.config import MethodConfig

    return MethodConfig(name=name, **parameters) if name in METHODS else None


def _knots_of(schedule: Schedule) -> torch.Tensor:
    """The knots of a learnable schedule or of a file; none for another schedule."""
    import torch

    own = getattr(schedule, "knots", None)
    return own if isinstance(own, torch.Tensor) else torch.empty(0)


def _entry(control: Control) -> dict[str, Any]:
    """The fields of a control in a file; those that only concern learning are left out."""
    return {name: getattr(control, name) for name in ControlEntry.__dataclass_fields__}
