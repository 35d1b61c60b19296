"""Curves, from which hand-coded schedules are built, and ``HandCoded``, a schedule with its name.

A curve is a pure function of progress [T] and L layers that returns [T, L] in the dtype of progress. The functions
below take their parameters by keyword: ``functools.partial`` makes curves of them that can be pickled to another
process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.methods.config import MethodConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.interpolation import Interpolation

Curve = Callable[[torch.Tensor, Sequence[Layer]], torch.Tensor]

# Width of a jump: 1 - 2**-24 is the largest float32 below 1, and a run of fewer than 2**24 steps has no step inside it.
JUMP = 2.0**-24


class Window(NamedTuple):
    """The window in which one layer anneals: progress of its start and end, and the power of the decay between them."""

    start: float
    end: float
    power: float


def constant(progress: torch.Tensor, layers: Sequence[Layer], *, value: float) -> torch.Tensor:
    """The same value at every progress [T] and in all L layers: [T, L]."""
    return progress.new_full((len(progress), len(layers)), value)


def steps(
    progress: torch.Tensor, layers: Sequence[Layer], *, times: Sequence[float], values: Sequence[float]
) -> torch.Tensor:
    """A step function: values[0] before times[0], values[k] from times[k - 1] on (right continuous).

    INQ's accumulated portions are such a function that starts at 0.

    Args:
        progress: [T] in [0, 1].
        layers: L of them; all have the same values.
        times: progress of the n jumps, increasing.
        values: the n + 1 values.

    Returns:
        [T, L] in the dtype of ``progress``.

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
    """Decay within one window per layer: beta ((end - u) / (end - start))^power, u clipped to the window.

    The value is beta before the window and 0 after it; with power 0 it is beta throughout. Source: ``bws`` of quantlib,
    ``algorithms/ana/controller.py``. We differ: time is progress, not epochs.

    Args:
        progress: [T] in [0, 1].
        layers: L of them; only their number matters.
        beta: value at the start of the window.
        windows: number of layers -> one window per layer, input first.

    Returns:
        [T, L] in the dtype of ``progress``.
    """
    start, end, power = progress.new_tensor(windows(len(layers))).unbind(1)
    left = (end - progress[:, None].clamp(start, end)) / (end - start)
    return beta * left**power + 0.0  # + 0.0: a negative beta must end at 0, not at -0


def linear(progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """1 - u at progress u [T]: [T, L], equal in all layers."""
    return _all_layers(1 - progress, layers)


def cosine(progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """(1 + cos(pi u)) / 2 at progress u [T]: [T, L] (Loshchilov and Hutter, ICLR 2017, arXiv 1608.03983)."""
    return _all_layers((1 + torch.cos(math.pi * progress)) / 2, layers)


def cosine_after(
    progress: torch.Tensor, layers: Sequence[Layer], *, onset: float, before: float, start: float, end: float
) -> torch.Tensor:
    """``before`` until the onset, then from start to end along half a cosine: [T, L], equal in all layers.

    Args:
        progress: [T] in [0, 1].
        layers: L of them.
        onset: progress at which the cosine starts, in [0, 1).
        before, start, end: values.

    >>> cosine_after(torch.tensor([0.0, 0.5, 1.0]), [None], onset=0.5, before=1.0, start=0.5, end=0.25).T.tolist()
    [[1.0, 0.5, 0.25]]
    """
    through = ((progress - onset) / (1 - onset)).clamp(0, 1)
    falling = end + (start - end) * (1 + torch.cos(math.pi * through)) / 2
    return _all_layers(torch.where(progress < onset, before, falling), layers)


def cubic(progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """(1 - u)^3 at progress u [T]: [T, L] (gradual pruning of Zhu and Gupta, 2017, arXiv 1710.01878)."""
    return _all_layers((1 - progress) ** 3, layers)


def input_first(progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """clip(1 + d - 2 u, 0, 1) at progress u [T] and relative depth d: [T, L].

    Linear from 1 to 0 over [d / 2, 1 / 2 + d / 2]: the layers nearest to the input anneal first.
    """
    return (1 + _depths(progress, layers) - 2 * progress[:, None]).clamp(0, 1)


def output_first(progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """``input_first`` with 1 - d for d, [T, L]: the layers nearest to the output anneal first."""
    return (2 - _depths(progress, layers) - 2 * progress[:, None]).clamp(0, 1)


def in_layers(
    progress: torch.Tensor, layers: Sequence[Layer], *, curve: Curve, factors: Sequence[float]
) -> torch.Tensor:
    """Another curve times one factor for each of the L layers: [T, L] at progress [T].

    Raises:
        MetaschedError: another number of layers.

    >>> in_layers(torch.tensor([0.25]), [None, None], curve=linear, factors=(1.0, 2.0)).tolist()
    [[0.75, 1.5]]
    """
    if len(factors) != len(layers):
        problem = f"was measured for {len(factors)} layers, and this network has {len(layers)}"
        raise MetaschedError("schedule", problem, "name it anew for this network")
    return curve(progress, layers) * progress.new_tensor(factors)


RAMPS: dict[str, Curve] = {  # each falls from 1 to 0 over the run
    "linear": linear,
    "cosine": cosine,
    "cubic": cubic,
    "input_first": input_first,
    "output_first": output_first,
}


def falling(progress: torch.Tensor, layers: Sequence[Layer], *, ramp: str, start: float) -> torch.Tensor:
    """From ``start`` to 0 along the named ramp of RAMPS: [T, L] at progress [T]."""
    return start * RAMPS[ramp](progress, layers)


def rising(progress: torch.Tensor, layers: Sequence[Layer], *, ramp: str) -> torch.Tensor:
    """From 0 to 1: one minus the named ramp of RAMPS; [T, L] at progress [T]."""
    return 1 - RAMPS[ramp](progress, layers)


@dataclass(frozen=True, repr=False)
class HandCoded:
    """A hand-coded schedule: one curve per control; callable as a Schedule.

    Attributes:
        name: ``[a-z][a-z0-9_]*``, unique over all families.
        family: name of its method, a key of METHODS.
        citation: source, and what it requires.
        curves: control -> curve.
        interpolation: between its samples: ``previous`` for step functions, else ``linear``.
        jumps: progress of the jumps of its curves, increasing.
    """

    name: str
    family: str
    citation: str
    curves: Mapping[str, Curve]
    interpolation: Interpolation
    jumps: tuple[float, ...] = ()

    def __repr__(self) -> str:
        return f"HandCoded({self.name}: method {self.family})"

    @property
    def method(self) -> MethodConfig:
        """The method that plays it, with its default parameters."""
        return MethodConfig(name=self.family)

    def __call__(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """The values [T, L] of each control at progress [T]."""
        assert len(layers) >= 1, "a schedule needs at least one layer"
        return {control: curve(progress, layers) for control, curve in self.curves.items()}

    def knots(self, num: int) -> torch.Tensor:
        """Progress at which to sample the schedule for interpolation: [K], float64, increasing from 0 to 1.

        A step function has a knot at each jump, and interpolation is exact. Other curves have ``num`` (at least 2)
        equally spaced knots and, for each jump, a knot at the jump and one 2**-24 before it.
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
