"""Controls as the learnable schedules see them: on a straight line, and of one value where all layers share it.

A control on a log scale is learned as its logarithm: range, direction and end hold for z = log v, and so for v = exp z.
A network-wide control has one column, which is handed to all layers.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from metasched.methods.base import Control


def straight(control: Control) -> Control:
    """The control whose values are ``into(control, values)``: linear in any case."""
    if control.scale == "linear":
        return control
    low, high = math.log(control.low), math.log(control.high)
    end = None if control.end is None else math.log(control.end)
    return replace(control, low=low, high=high, end=end, scale="linear")


def into(control: Control, values: torch.Tensor) -> torch.Tensor:
    """The base's values [K, L] as ``straight(control)`` has them: logarithms on a log scale; [K, 1] if network-wide.

    A network-wide control whose base differs between layers has their mean.
    """
    if control.granularity == "network":
        first = values[:, :1]
        mean = values.mean(1, keepdim=True).clamp(control.low, control.high)
        values = torch.where((values == first).all(1, keepdim=True), first, mean)
    return values if control.scale == "linear" else values.clamp(control.low, control.high).log()


def out_of(control: Control, values: torch.Tensor, num_layers: int) -> torch.Tensor:
    """Values [K, num_layers] of the control from those of ``straight(control)``: in range, and exact at the end."""
    if control.scale == "log":
        line, values = values, values.exp().clamp(control.low, control.high)
        if control.end is not None:
            if control.direction == "nonincreasing":
                values = values.clamp_min(control.end)
            elif control.direction == "nondecreasing":
                values = values.clamp_max(control.end)
            values = torch.where(line == math.log(control.end), control.end, values)
    return values.expand(-1, num_layers) if control.granularity == "network" else values


def at_shares(control: Control, shares: torch.Tensor) -> torch.Tensor:
    """Values at shares in [0, 1] of the range: geometric on a log scale.

    >>> at_shares(Control("c", 1.0, 100.0, "one", "free", end=None, scale="log"), torch.tensor([0.0, 0.5]))
    tensor([ 1.0000, 10.0000])
    """
    line = straight(control)
    values = line.low + (line.high - line.low) * shares
    return values if control.scale == "linear" else values.exp().clamp(control.low, control.high)
