"""``calibrate``: a trained network is quantized unit by unit, in the order of execution, from unlabelled batches.

Each unit, a layer with the normalization and activation right after it or a block, gets its inputs from the network
whose earlier units are quantized already, and its targets from the float network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from metasched.calibration.batches import Batches
from metasched.calibration.nearest import nearest
from metasched.calibration.parts import By
from metasched.calibration.table import find_procedure, options_of
from metasched.calibration.telling import TellIfLong
from metasched.calibration.unit import Rounded, Unit
from metasched.calibration.walk import Walk
from metasched.methods.config import MethodConfig
from metasched.network.recipe import Recipe


@dataclass(frozen=True)
class UnitReport:
    """What was done with a unit.

    Attributes:
        unit: name of the layer or block.
        layers: names of its quantized layers.
        nearest: relative squared error of its outputs with all weights on their nearest levels.
        error: the same as it is now.
        seconds: wall time.
        details: numbers of the procedure, means over the layers.
    """

    unit: str
    layers: tuple[str, ...]
    nearest: float
    error: float
    seconds: float
    details: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """How far a calibration is.

    Attributes:
        unit: name of the layer or block that is worked on, or has just been done.
        done: units that are done.
        total: all units.
        seconds: since the start.
        left: seconds to go, if all units take the same time; None before anything is known.
        report: of the unit, if it has just been done.
    """

    unit: str
    done: int
    total: int
    seconds: float
    left: float | None
    report: UnitReport | None = None


def calibrate(
    model: nn.Module,
    recipe: Recipe | MethodConfig | str,
    batches: Batches,
    method: str = "adaround",
    *,
    by: By = "layer",
    progress: Callable[[Progress], object] | None = None,
    **options: Any,
) -> nn.Module:
    """The trained network with quantized weights and activations, in eval mode; the given one stays as it is.

    The result is a module like those of ``prepare``: ``metasched.convert`` makes a plain one of it, which
    ``metasched.deploy`` takes. Scales of activations are fitted, layer by layer, to what reaches them.

    >>> import metasched, torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> recipe = metasched.Recipe("ste", weights="int2", activations=None, granularity="channel")
    >>> found = metasched.calibrate(model, recipe, [torch.randn(16, 4)], steps=20)
    >>> [len(row.unique()) <= 4 for row in metasched.convert(found)[0].weight][:3]
    [True, True, True]

    Args:
        model: a trained network; it is run in eval mode.
        recipe: its levels, granularity and rules say what is quantized; which method it names plays no part. A scale
            ``unit`` or ``learned`` of weights is one of least squares here, and an activation scale of 1 is fitted.
        batches: inputs [N, ...] of the training data, or mappings of keyword arguments; a few hundred examples.
        method: procedure: ``nearest``, ``adaround``, ``bit_split``, ``bit_split_weights``, ``multipoint``, ``product``.
        by: ``layer``; ``block``, with residual blocks as units where there are some; or names of modules, each a unit.
        progress: is called often, see there; None: lines on standard output, if it takes more than some seconds.
        options: of the procedure, see ``metasched list``.

    Raises:
        MetaschedError: what does not fit, with the batch, layer or option that it is about.
    """
    spec = find_procedure(method)
    settings = options_of(spec, options)
    walk = Walk(model, recipe, batches, spec, by)
    start, total = time.perf_counter(), len(walk.parts)
    told = progress or TellIfLong()

    def tell(name: str, done: int, share: float, report: UnitReport | None = None) -> None:
        seconds = time.perf_counter() - start
        left = seconds * (total - done - share) / (done + share) if done + share > 0 else None
        told(Progress(name, done, total, seconds, left, report))

    ready = spec.builder(walk, settings, lambda share: tell("the network", 0, share * total)) if spec.whole else None
    for k, part in enumerate(walk.parts):
        began = time.perf_counter()
        tell(part.name, k, 0.0)
        unit = walk.unit(part, lambda share, k=k, name=part.name: tell(name, k, share))
        rounded = spec.builder(unit, settings) if ready is None else [ready[i] for i, _ in part.layers]
        walk.settle(part, rounded)
        report = _report(unit, rounded, time.perf_counter() - began)
        tell(part.name, k + 1, 0.0, report)
    return walk.shell.module


def units(
    model: nn.Module, recipe: Recipe | MethodConfig | str, batches: Batches, *, by: By = "layer"
) -> Iterator[Unit]:
    """The units one after the other, each with the layers before it on their nearest levels; see ``calibrate``.

    For experiments with one unit, such as learning the schedule of its rounding.
    """
    walk = Walk(model, recipe, batches, find_procedure("nearest"), by)
    for part in walk.parts:
        yield (unit := walk.unit(part, lambda share: None))
        walk.settle(part, nearest(unit))


def _report(unit: Unit, rounded: Sequence[Rounded], seconds: float) -> UnitReport:
    plain = unit.error(r.weight for r in nearest(unit))
    error = unit.error(r.weight for r in rounded)
    names = {name for r in rounded for name in r.details}
    details = {name: sum(r.details[name] for r in rounded) / len(rounded) for name in sorted(names)}
    return UnitReport(unit.name, tuple(layer.name for layer in unit.layers), plain, error, seconds, details)
