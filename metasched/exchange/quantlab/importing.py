"""Imports schedules of QuantLab as schedule files."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.exchange.export import export
from metasched.exchange.format import MAX_KNOTS, Provenance, ScheduleFile
from metasched.exchange.quantlab.controllers import Controller, activation_module, read_quantlab
from metasched.io.strict_json import show
from metasched.methods.base import Control

MAX_EPOCHS = MAX_KNOTS // 2  # the other knots are for ends and dwells


def import_quantlab(
    path: str | os.PathLike[str],
    *,
    total: int | None,
    name: str,
    method_name: str,
    method_parameters: Mapping[str, str | bool | int | float | None],
    controls: Sequence[Control],
    layers: Sequence[Layer],
) -> ScheduleFile:
    """The schedule of a QuantLab file: a step function that changes at progress epoch / epochs.

    Every step has the value that QuantLab has in its epoch; but where a control must be at its end (``end``,
    ``dwell``), it is, whatever the file says. A layer uses the timer that names it; if not all layers are named, there
    must be as many timers as layers, in the order of the data flow. ``sigma`` is converted to a half-width in quanta
    with the unit of the method's noise family. It is the noise of the layer's weight and of its activation, unless
    another timer names ``<layer>.activation``, as ``export_quantlab`` writes it.

    Args:
        path: path of the file.
        total: epochs of the whole run; None: those of the file.
        name: name of the schedule in its provenance.
        method_name, method_parameters, controls: the method of the schedule.
        layers: layers of the network.

    Raises:
        MetaschedError: see ``read_quantlab``; another method or noise family; timers do not fit the layers; a value is
            out of the range of its control; the number of epochs is out of range or less than the last change.
    """
    import torch

    found = read_quantlab(path)
    epochs = found.epochs if total is None else total
    if epochs is None:
        raise MetaschedError(
            "--total", f"is needed, because {found.place} has no number of epochs", "give the epochs of the whole run"
        )
    if not 1 <= epochs <= MAX_EPOCHS:
        raise MetaschedError(
            "--total", f"must be in [1, {MAX_EPOCHS}], got {epochs}", "give the epochs of the whole run"
        )
    if found.timers is not None:
        what, given = f"ANA controller of {len(found.timers)} timers", _noise(found, method_parameters, layers)
    else:
        assert found.fractions is not None
        what, given = f"INQ controller of {len(found.fractions)} fractions", _freezing(found, epochs, layers)
    declared = {control.name for control in controls}
    if not declared or not declared <= given.keys():  # a method without quantized activations leaves their noise out
        problem = f"is {method_name}, but the file sets {', '.join(given)}"
        raise MetaschedError("method.name", problem, f"set it to {'ana' if found.timers is not None else 'inq'}")

    times = [t / epochs for t in range(epochs)]
    table = {control.name: [_checked(given, control, t, found) for t in range(epochs)] for control in controls}
    changes = {t for rows in table.values() for t in range(1, epochs) if rows[t] != rows[t - 1]}
    knots = {0.0, *(times[t] for t in changes), *(1 - c.dwell for c in controls if c.end is not None), 1.0}

    def schedule(progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        values = {}
        for control in controls:
            rows = []
            for u in progress.tolist():
                ended = control.end is not None and u >= 1 - control.dwell
                rows.append([control.end] * len(layers) if ended else table[control.name][bisect_right(times, u) - 1])
            values[control.name] = torch.tensor(rows, dtype=torch.float64)
        return values

    return export(
        schedule,
        method_name=method_name,
        method_parameters=method_parameters,
        controls=controls,
        layers=layers,
        knots=torch.tensor(sorted(knots), dtype=torch.float64),
        interpolation="previous",
        provenance=Provenance(kind="hand-coded", name=name, citation=f"QuantLab: {what}, {epochs} epochs"),
    )


Given = Mapping[str, Callable[[int], list[float]]]  # control -> epoch -> a value for each layer


def _noise(found: Controller, parameters: Mapping[str, Any], layers: Sequence[Layer]) -> Given:
    from metasched.quantizers.noise import NOISE_FAMILIES

    family = parameters.get("noise", "uniform")
    if found.noise not in (None, family):
        problem = f"is {show(family)}, but the file has noise_type {show(found.noise)}"
        raise MetaschedError("method.noise", problem, "set it to that of the file")
    assert found.timers is not None and isinstance(family, str)
    unit = NOISE_FAMILIES[family].unit
    named = {module: timer for timer in found.timers for module in timer.modules}
    if all(layer.name in named for layer in layers):
        timers = [named[layer.name] for layer in layers]
        of_activations = [named.get(activation_module(layer.name), named[layer.name]) for layer in layers]
    elif len(found.timers) == len(layers):
        timers = of_activations = list(found.timers)
    else:
        problem = (
            f"has {len(found.timers)} timers for the {len(layers)} layers of the network, and does not name all of them"
        )
        raise MetaschedError(found.place, problem, f"name them in modules: {', '.join(layer.name for layer in layers)}")
    return {
        "weight_noise": lambda t: [timer.scale.at(t) / unit for timer in timers],
        "activation_noise": lambda t: [timer.scale.at(t) / unit for timer in of_activations],
        "noise_mean": lambda t: [timer.mean.at(t) for timer in timers],
    }


def _freezing(found: Controller, epochs: int, layers: Sequence[Layer]) -> Given:
    assert found.fractions is not None
    if max(found.fractions) >= epochs:
        problem = f"freezes at epoch {max(found.fractions)}, counted from 0, but the whole run has {epochs}"
        raise MetaschedError(found.place, problem, "give the epochs of the whole run with --total")
    steps = sorted(found.fractions)
    values = [0.0, *(found.fractions[t] for t in steps)]
    return {"freeze_fraction": lambda t: [values[bisect_right(steps, t)]] * len(layers)}


def _checked(given: Given, control: Control, epoch: int, found: Controller) -> list[float]:
    row = given[control.name](epoch)
    for value in row:
        if not control.low <= value <= control.high:
            problem = f"{control.name} must lie in [{control.low!r}, {control.high!r}], got {value!r} at epoch {epoch}"
            raise MetaschedError(found.place, problem, "correct its beta")
    return row
