"""The curves that hand-coded schedules are made of, and the record that names such a schedule.

A curve is a pure function (progress [T], layers) -> [T, L] in the dtype of progress. The functions below take their
parameters by keyword: ``functools.partial`` turns them into curves that can be pickled to another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from metasched.core.layer import Layer
from metasched.schedules.base import progress_of_steps
from metasched.schedules.interpolation import Interpolation

Curve = Callable[[torch.Tensor, Sequence[Layer]], torch.Tensor]

# Width of a jump: 1 - 2**-24 is the last float32 below 1, and no run of under 2**24 steps has a step within it.
JUMP = 2.0**-24


class Window(NamedTuple):
    """Where one layer anneals: progress of the start and of the end, and the power of the decay between them."""

    start: float
    end: float
    power: float


def constant(progress: torch.Tensor, layers: Sequence[Layer], *, value: float) -> torch.Tensor:
    """The same value at all times and in all layers."""
    return progress.new_full((len(progress), len(layers)), value)


def steps(
    progress: torch.Tensor, layers: Sequence[Layer], *, times: Sequence[float], values: Sequence[float]
) -> torch.Tensor:
    """A step function: values[0] before times[0], values[k] from times[k - 1] on (right-continuous).

    INQ's accumulated portions are steps that start from 0.

    >>> steps(torch.tensor([0.0, 0.5, 0.9, 1.0]), [None], times=(0.5, 1.0), values=(0.0, 0.75, 1.0)).flatten().tolist()
    [0.0, 0.75, 0.75, 1.0]
    """
    assert len(values) == len(times) + 1, (times, values)
    index = torch.bucketize(progress, progress.new_tensor(times), right=True)
    return _all_layers(progress.new_tensor(values)[index], layers)


def bounded_window(
    progress: torch.Tensor,
    layers: Sequence[Layer],
    *,
    beta: float,
    windows: Callable[[int], Sequence[Window]],
) -> torch.Tensor:
    """Decay inside a window of its own for each layer: beta ((end - u) / (end - start))^power, u clipped to the window.

    beta before the window, 0 after it; a power of 0 is constant, after the window too. This is ``bws`` of quantlib,
    ``algorithms/ana/controller.py``, which counts time in epochs where we have progress.

    Args:
        progress: [T].
        layers: L of them; their number is all that counts.
        beta: value at the start.
        windows: number of layers -> one window a layer, input first.
    """
    start, end, power = progress.new_tensor(windows(len(layers))).unbind(1)
    left = (end - progress[:, None].clamp(start, end)) / (end - start)
    return beta * left**power + 0.0  # + 0.0: a negative beta must end at 0, not at -0


def linear(progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """1 - u."""
    return _all_layers(1 - progress, layers)


def cosine(progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """(1 + cos(pi u)) / 2 (Loshchilov and Hutter, ICLR 2017, arXiv 1608.03983)."""
    return _all_layers((1 + torch.cos(math.pi * progress)) / 2, layers)


def cubic(progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """(1 - u)^3 (the gradual pruning of Zhu and Gupta, 2017, arXiv 1710.01878)."""
    return _all_layers((1 - progress) ** 3, layers)


def input_first(progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """Linear from 1 to 0 over [d / 2, 1 / 2 + d / 2] for a layer at relative depth d: clip(1 + d - 2 u, 0, 1)."""
    return (1 + _depths(progress, layers) - 2 * progress[:, None]).clamp(0, 1)


def output_first(progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """``input_first`` with depth 1 - d: the layers nearest to the output anneal first."""
    return (2 - _depths(progress, layers) - 2 * progress[:, None]).clamp(0, 1)


RAMPS: dict[str, Curve] = {  # each falls from 1 to 0 over the run
    "linear": linear,
    "cosine": cosine,
    "cubic": cubic,
    "input_first": input_first,
    "output_first": output_first,
}


def falling(progress: torch.Tensor, layers: Sequence[Layer], *, ramp: str, start: float) -> torch.Tensor:
    """From start to 0 along a ramp of RAMPS."""
    return start * RAMPS[ramp](progress, layers)


def rising(progress: torch.Tensor, layers: Sequence[Layer], *, ramp: str) -> torch.Tensor:
    """From 0 to 1: one minus a ramp of RAMPS."""
    return 1 - RAMPS[ramp](progress, layers)


@dataclass(frozen=True)
class HandCoded:
    """A hand-coded schedule: named curves, callable as a Schedule.

    Attributes:
        name: ``[a-z][a-z0-9_]*``, unique over all families.
        family: the method that it drives, a name of METHODS.
        citation: where it comes from, and what it needs.
        curves: control -> curve.
        interpolation: how to play its samples: ``previous`` for pure step functions, else ``linear``.
        jumps: progress at which a curve jumps, increasing.
    """

    name: str
    family: str
    citation: str
    curves: Mapping[str, Curve]
    interpolation: Interpolation
    jumps: tuple[float, ...] = ()

    def __call__(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values [T, L] of each control."""
        assert len(layers) >= 1, "a schedule needs a layer"
        return {control: curve(progress, layers) for control, curve in self.curves.items()}

    def knots(self, num: int) -> torch.Tensor:
        """Where to sample the schedule so that its interpolation rebuilds it: [K], float64, from 0 to 1.

        Step functions need a knot at each jump and are rebuilt exactly. Other curves get ``num`` (at least 2) equally
        spaced knots and, for each jump, a knot at the jump and one 2**-24 before it.
        """
        assert num >= 2, num
        if self.interpolation == "previous":
            return torch.tensor(sorted({0.0, *self.jumps, 1.0}), dtype=torch.float64)
        around_jumps = {u for jump in self.jumps for u in (jump - JUMP, jump)}
        return torch.tensor(sorted({*progress_of_steps(num).tolist(), *around_jumps}), dtype=torch.float64)


def _all_layers(values: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    return values[:, None].repeat(1, len(layers))


def _depths(progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    return progress.new_tensor([layer.depth for layer in layers])
