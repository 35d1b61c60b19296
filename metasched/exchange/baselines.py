"""The hand-coded schedules as files, for the network of the ANA paper: ``experiments/baselines/*.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.exchange.export import export
from metasched.exchange.format import Provenance, ScheduleFile
from metasched.exchange.schedule_file import read_schedule, write_schedule
from metasched.methods import METHODS, build_method
from metasched.methods.config import MethodConfig
from metasched.models.vgg8 import VGG8
from metasched.schedules.curves import JUMP, RAMPS, HandCoded
from metasched.schedules.interpolation import interpolate
from metasched.schedules.table import hand_coded, method_of_hand_coded

TOLERANCE = 1e-3

_WINDOWS_IN = (10, 12, 16)  # for 7 layers, every window starts and ends at a multiple of 1/10, 1/12 or 1/16 of the run


def write_baselines(folder: str | Path) -> list[Path]:
    """Writes every baseline to ``folder/<name>.json`` and returns the paths."""
    files = baselines()
    for name, file in files.items():
        write_schedule(Path(folder) / f"{name}.json", file)
    return [Path(folder) / f"{name}.json" for name in files]


def baselines() -> dict[str, ScheduleFile]:
    """{name: file} of the hand-coded schedules of all methods on VGG8; of the joint method only the ramps."""
    ramps = {f"joint_{ramp}" for ramp in RAMPS}
    schedules = [
        schedule
        for method in METHODS
        if build_method(MethodConfig(name=method)).controls
        for name, schedule in hand_coded(method).items()
        if method != "joint" or name in ramps
    ]
    layers = vgg8_layers()
    return {schedule.name: sampled(schedule, layers) for schedule in schedules}


def file_named(named: str) -> ScheduleFile:
    """The schedule file that a name or a path means; a hand-coded schedule is sampled for the layers of VGG8.

    Raises:
        MetaschedError: no schedule of that name, or without controls; or the file cannot be read.
    """
    known = method_of_hand_coded()
    if named not in known:
        return read_schedule(named)
    schedule = hand_coded(known[named])[named]
    if not schedule.curves:
        raise MetaschedError(named, f"has no values: {schedule.family} has no controls", "name another schedule")
    return sampled(schedule, vgg8_layers())


def vgg8_layers() -> tuple[Layer, ...]:
    """The 7 quantized layers of VGG8 for CIFAR-10, all ternary; the last layer stays in float."""
    with torch.device("meta"):  # only shapes are needed
        model = VGG8(in_channels=3, num_classes=10)
    chosen = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)][:-1]
    return tuple(
        Layer(
            name=name,
            depth=i / (len(chosen) - 1),
            kind="conv" if isinstance(module, nn.Conv2d) else "linear",
            quantizes="weight+activation",
            fan_in=module.weight[0].numel(),
            num_weights=module.weight.numel(),
            bits=math.log2(3),
        )
        for i, (name, module) in enumerate(chosen)
    )


def knots_within(schedule: HandCoded, layers: Sequence[Layer], tolerance: float) -> torch.Tensor:
    """Knots between which interpolation of the schedule has an error of at most ``tolerance``.

    A step function has a knot at each jump and no error. For other schedules, the knots start as equal parts of the run
    and the knots around the jumps. Each interval except those of the jumps is then halved until the error at its
    sixteenths is within the tolerance, which is in the unit of the control.

    Returns:
        [K] progress, float64, increasing from 0 to 1.
    """
    knots = schedule.knots(2)
    if schedule.interpolation == "previous":
        return knots
    parts = [torch.arange(n + 1, dtype=torch.float64) / n for n in _WINDOWS_IN]
    knots = torch.cat([knots, *parts]).unique()
    while True:
        inside = knots[:-1, None] + knots.diff()[:, None] * torch.arange(1, 16, dtype=torch.float64) / 16
        exact, coarse = schedule(inside.flatten(), layers), schedule(knots, layers)
        off = torch.zeros(len(knots) - 1, dtype=torch.bool)
        for control, values in exact.items():
            error = (interpolate(inside.flatten(), knots, coarse[control], "linear") - values).abs()
            off |= error.amax(1).reshape(-1, 15).amax(1) > tolerance
        off &= knots.diff() > JUMP
        if not off.any():
            return knots
        knots = torch.cat([knots, inside[off, 7]]).unique()


def sampled(schedule: HandCoded, layers: Sequence[Layer]) -> ScheduleFile:
    """The schedule file of a hand-coded schedule on some layers, with an interpolation error within TOLERANCE."""
    return export(
        schedule,
        method_name=schedule.family,
        method_parameters={},
        controls=build_method(MethodConfig(name=schedule.family)).controls,
        layers=layers,
        knots=knots_within(schedule, layers, TOLERANCE),
        interpolation=schedule.interpolation,
        provenance=Provenance(kind="hand-coded", name=schedule.name, citation=schedule.citation),
    )
