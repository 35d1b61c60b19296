"""Export of a schedule: samples it at knots and builds the record of a schedule file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from metasched.core.layer import Layer
from metasched.exchange.format import ControlEntry, Provenance, ScheduleFile
from metasched.exchange.schedule_file import validated

if TYPE_CHECKING:
    import torch

    from metasched.methods.base import Control
    from metasched.schedules.base import Schedule


def export(
    schedule: Schedule,
    *,
    method_name: str,
    method_parameters: Mapping[str, str | bool | int | float | None],
    controls: Sequence[Control],
    layers: Sequence[Layer],
    knots: torch.Tensor,
    interpolation: Literal["linear", "previous"],
    provenance: Provenance,
) -> ScheduleFile:
    """Samples a schedule at the knots, in float64.

    Between knots where the schedule itself is linear (or constant, for ``previous``), the file reproduces it exactly;
    elsewhere it is exact at the knots only.

    Args:
        schedule: returns at least the values of ``controls``.
        method_name: name of the method.
        method_parameters: fixed parameters of the method.
        controls: the controls to export, as the method declares them.
        layers: the L layers at which the schedule is sampled.
        knots: [K] progress, float64, increasing from 0 to 1.
        interpolation: between the knots.
        provenance: origin of the schedule.

    Raises:
        MetaschedError: a value violates the range, direction or end of its control; the message names its place.
    """
    import torch

    assert knots.dtype == torch.float64, knots.dtype
    sampled = schedule(knots, layers)
    tree = {
        "method": {"name": method_name, "parameters": dict(method_parameters)},
        "controls": [_entry(control) for control in controls],
        "progress": knots.tolist(),
        "layers": [{k: v for k, v in asdict(layer).items() if k != "key"} for layer in layers],
        "values": {control.name: sampled[control.name].double().T.tolist() for control in controls},
        "interpolation": interpolation,
        "provenance": provenance,
    }
    return validated(tree)


def _entry(control: Control) -> dict[str, Any]:
    """The fields of a control in a file; those that only concern learning are left out."""
    return {name: getattr(control, name) for name in ControlEntry.__dataclass_fields__}
