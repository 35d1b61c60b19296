"""A closed-loop schedule: an open-loop schedule, corrected by a few measured features.

With b the open-loop value of a control in a layer of relative depth d, and phi_f the features of the run so far,

    c = sum_f (a_f + b_f m) phi_f,   m = 2 d - 1
    v = range(logit(b) + c)          from a bound of the range in a straight line, in the learned space (space.py)

so that two numbers for each feature are learned of a control (one of a network-wide control, whose c is the mean over
the layers). The features are in [-1, 1], and 0 before anything is measured (training/feedback.py says how):

    loss_trend   (F - S) / (|F| + |S|), a fast and a slow average of the loss: below 0 while it falls
    distance     mean distance of the layer's weights to where they would be hardened to: 1 for half a quantum
    flips        (x - 1) / (x + 1), x codes that a weight of the layer would change in the run at the present rate

Where c is 0, v is b, bit for bit. Range, direction and end hold for all numbers: of a monotone control with an end the
range goes to that end, its value does not go back behind that of the step before, and where the end holds c is 0.

A schedule is still a pure function of progress and layers: it gives the *gains* a_f + b_f m beside the open-loop
values, each as a curve of its own, ``control:feature``. Whoever trains turns both into the values of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from metasched.core.layer import Layer
from metasched.methods.base import Control
from metasched.schedules.family import ScheduleFamily
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.space import into_range, straight

FEATURES = ("loss_trend", "distance", "flips")
_SIGN = ":"  # which no name of a control has
_DWELL_ROUNDING = 1e-9


class FeedbackSchedule(nn.Module):
    """A learnable schedule with the gains of each learned control, which are 0 before learning.

    Args:
        base: the open-loop schedule, which is learned with them.

    Attributes:
        gains: {control: [features, 2]}: a_f and b_f; [features, 1] of a network-wide control. In float64.
    """

    def __init__(self, base: ScheduleNetwork | ScheduleFamily) -> None:
        super().__init__()
        self.base = base
        self.gains = nn.ParameterDict(
            {c.name: torch.zeros(len(FEATURES), numbers_of(c), dtype=torch.float64) for c in base.learned}
        )

    @property
    def knots(self) -> torch.Tensor:
        """The knots [K] of the open-loop schedule."""
        return self.base.knots

    @property
    def learned(self) -> tuple[Control, ...]:
        """The controls that are learned."""
        return self.base.learned

    def forward(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values {control: [T, L]} of the open-loop schedule at progress [T], and gains {control:feature: [T, L]}."""
        values = self.base(progress, layers)
        for control in self.learned:
            values |= gain_curves(control, self.gains[control.name], progress, layers)
        return values

    def scales(self) -> dict[str, float]:
        """{parameter: change that moves the correction by about one}; 1 for gains."""
        own = getattr(self.base, "scales", dict[str, float])()
        return {f"base.{name}": scale for name, scale in own.items()}


def numbers_of(control: Control) -> int:
    """How many numbers the gain of a feature has."""
    return 1 if control.granularity == "network" else 2


def gain_curves(
    control: Control, numbers: torch.Tensor, progress: torch.Tensor, layers: Sequence[Layer]
) -> dict[str, torch.Tensor]:
    """The gains of a control, {control:feature: [T, L]}; 0 where its end holds.

    Args:
        control: which it is.
        numbers: [features, 1 or 2].
        progress: [T].
        layers: L of them.
    """
    ones = torch.ones(len(layers), dtype=numbers.dtype, device=numbers.device)
    depths = 2 * numbers.new_tensor([layer.depth for layer in layers]) - 1
    of_layers = numbers @ torch.stack([ones, depths])[: numbers.shape[1]]  # [features, L]
    moves = torch.ones_like(progress) if control.end is None else progress < 1 - control.dwell - _DWELL_ROUNDING
    curves = torch.where(moves.bool()[:, None, None], of_layers.to(progress), 0.0)
    return {f"{control.name}{_SIGN}{name}": curves[:, f] for f, name in enumerate(FEATURES)}


def is_closed_loop(values: Mapping[str, object]) -> bool:
    """Whether values of a schedule, by name, have gains among them.

    >>> is_closed_loop({"weight_width": 1, "weight_width:flips": 0}), is_closed_loop({"weight_width": 1})
    (True, False)
    """
    return any(_SIGN in name for name in values)


def open_loop(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The values without the gains, each [...]."""
    return {name: v for name, v in values.items() if _SIGN not in name}


def gains_of(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gains alone: {control: [features, ...]}."""
    names = dict.fromkeys(name.partition(_SIGN)[0] for name in values if _SIGN in name)
    return {name: torch.stack([values[f"{name}{_SIGN}{feature}"] for feature in FEATURES]) for name in names}


def corrected(
    control: Control, base: torch.Tensor, gains: torch.Tensor, features: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """The value of a control at one step, [L].

    Args:
        control: which it is.
        base: [L], the open-loop values.
        gains: [features, L].
        features: [features, L], in [-1, 1].
        last: [L], the values of the step before.
    """
    c = (gains * features).sum(0)
    if control.granularity == "network":
        c = c.mean().expand_as(c)
    line, rises, falls = straight(control), control.direction == "nondecreasing", control.direction == "nonincreasing"
    low = line.end if falls and line.end is not None else line.low
    high = line.end if rises and line.end is not None else line.high
    moved = into_range(low, high, base if control.scale == "linear" else base.log(), c)
    moved = (moved if control.scale == "linear" else moved.exp()).clamp(control.low, control.high)
    found = torch.where(c == 0, base, moved)
    if rises or falls:
        found = torch.maximum(found, last) if rises else torch.minimum(found, last)
    return found
