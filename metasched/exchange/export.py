"""From a schedule to the record that a file holds: its values at knots."""

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
    """Sample a schedule at the knots, in float64.

    The file plays back exactly what ``schedule`` gives wherever ``schedule`` is itself linear, or constant, between
    the knots; elsewhere it is exact at the knots only.

    Args:
        schedule: gives at least the values of ``controls``.
        method_name: name of the method that it is for.
        method_parameters: the method's fixed parameters.
        controls: the controls to export, as the method declares them.
        layers: the layers of the network that it was made for.
        knots: [K] progress, float64, increasing from 0 to 1.
        interpolation: between the knots.
        provenance: where it comes from.

    Raises:
        MetaschedError: the values break what a control declares (range, direction, end), with their place.
    """
    import torch

    assert knots.dtype == torch.float64, knots.dtype
    sampled = schedule(knots, layers)
    tree = {
        "method": {"name": method_name, "parameters": dict(method_parameters)},
        "controls": [_entry(control) for control in controls],
        "progress": knots.tolist(),
        "layers": [asdict(layer) for layer in layers],
        "values": {control.name: sampled[control.name].double().T.tolist() for control in controls},
        "interpolation": interpolation,
        "provenance": provenance,
    }
    return validated(tree)


def _entry(control: Control) -> dict[str, Any]:
    """What a file says of a control: not what concerns learning alone."""
    return {name: getattr(control, name) for name in ControlEntry.__dataclass_fields__}
