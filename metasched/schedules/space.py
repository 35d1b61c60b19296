"""The space in which controls are learned: linear in any case, with one column for a network-wide control.

A control on a log scale is learned as z = log v; range, direction and end hold for z and therefore for v = exp z. The
one column of a network-wide control is copied to all layers.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from metasched.methods.base import Control


def straight(control: Control) -> Control:
    """The control in the learned space: on a log scale, with the logarithms of its values; else unchanged."""
    if control.scale == "linear":
        return control
    optional = {name: getattr(control, name) for name in ("end", "none_value", "learning_floor")}
    logarithms = {name: None if value is None else math.log(value) for name, value in optional.items()}
    return replace(control, low=math.log(control.low), high=math.log(control.high), scale="linear", **logarithms)


def into(control: Control, values: torch.Tensor) -> torch.Tensor:
    """Maps values [K, L] of a control to the learned space: logarithms on a log scale, [K, 1] if network-wide.

    For a network-wide control, values that differ between layers are replaced by their mean.
    """
    if control.granularity == "network":
        first = values[:, :1]
        mean = values.mean(1, keepdim=True).clamp(control.low, control.high)
        values = torch.where((values == first).all(1, keepdim=True), first, mean)
    return values if control.scale == "linear" else values.clamp(control.low, control.high).log()


def out_of(control: Control, values: torch.Tensor, num_layers: int) -> torch.Tensor:
    """Maps values [K, L or 1] in the learned space back to the control: [K, num_layers], in range, exact at the end."""
    if control.scale == "log":
        line, values = values, values.exp()
        # where, not clamp: its derivative at a bound, where a schedule may start, differs between versions of torch
        values = torch.where(
            values > control.high, control.high, torch.where(values < control.low, control.low, values)
        )
        if control.end is not None:
            if control.direction == "nonincreasing":
                values = values.clamp_min(control.end)
            elif control.direction == "nondecreasing":
                values = values.clamp_max(control.end)
            values = torch.where(line == math.log(control.end), control.end, values)
    return values.expand(-1, num_layers) if control.granularity == "network" else values


def at_shares(control: Control, shares: torch.Tensor) -> torch.Tensor:
    """Values at ``shares`` [...] in [0, 1] of the range: low (high / low)^share on a log scale, else linear.

    >>> at_shares(Control("c", 1.0, 100.0, "one", "free", end=None, scale="log"), torch.tensor([0.0, 0.5]))
    tensor([ 1.0000, 10.0000])
    """
    line = straight(control)
    values = line.low + (line.high - line.low) * shares
    return values if control.scale == "linear" else values.exp().clamp(control.low, control.high)


def into_range(low: float, high: float, base: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    """range(logit(base) + correction), range(z) = low + (high - low) sigmoid(z), in the learned space.

    From a bound of the range, where the logit is infinite, a quarter of the range per unit of correction.

    Args:
        low, high: the range.
        base: [...], values in it.
        correction: [...].
    """
    width = high - low
    share = (base - low) / width
    inside = (share > 0) & (share < 1)
    safe = torch.where(inside, share, 0.5)
    moved = low + width * torch.sigmoid(torch.logit(safe) + correction)
    # at a bound the logit is infinite: a straight line with the slope that the logistic function has in the middle;
    # where, not clamp, whose derivative at its own bounds, where learning starts, differs between versions of torch
    inwards = torch.where(share <= 0, correction, -correction) / 4
    way = width * torch.where(inwards < 0, 0.0, inwards).clamp_max(1)
    return torch.where(inside, moved, torch.where(share <= 0, base + way, base - way))
