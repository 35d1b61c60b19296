"""Interpolation of a schedule between its knots; learnable schedules and the player share this function."""

from __future__ import annotations

from typing import Literal

import torch

Interpolation = Literal["linear", "previous"]


def interpolate(progress: torch.Tensor, knots: torch.Tensor, values: torch.Tensor, kind: Interpolation) -> torch.Tensor:
    """Values between knots; at a knot, exactly its value.

    With k_i <= u < k_{i+1} and w = (u - k_i) / (k_{i+1} - k_i):

        linear      v_i + w (v_{i+1} - v_i)
        previous    v_i, a right continuous step function

    Every value lies between those of its two knots, and between equal values it is equal to them. Each element is
    computed independently: its bits do not depend on the number of steps or layers in the call.

    Args:
        progress: [T], in [0, 1].
        knots: [K], strictly increasing from 0 to 1.
        values: [K, L], finite.
        kind: ``linear`` or ``previous``.

    Returns:
        [T, L], differentiable in ``values``. All tensors have the same floating dtype.

    >>> u, knots = torch.tensor([0.25, 0.5, 1.0]), torch.tensor([0.0, 0.5, 1.0])
    >>> values = torch.tensor([[4.0], [2.0], [0.0]])
    >>> interpolate(u, knots, values, "linear").flatten().tolist()
    [3.0, 2.0, 0.0]
    >>> interpolate(u, knots, values, "previous").flatten().tolist()
    [4.0, 2.0, 0.0]
    """
    assert progress.dtype == knots.dtype == values.dtype, (progress.dtype, knots.dtype, values.dtype)
    assert values.ndim == 2 and knots.shape == values.shape[:1], (knots.shape, values.shape)
    assert len(knots) >= 2 and knots[0] == 0 and knots[-1] == 1 and bool((knots.diff() > 0).all()), knots
    assert bool(((progress >= 0) & (progress <= 1)).all()), "progress must lie in [0, 1]"

    index = torch.searchsorted(knots.detach(), progress.detach().contiguous(), right=True) - 1
    left = values[index]
    if kind == "previous":
        return left
    assert kind == "linear", kind
    after = (index + 1).clamp(max=len(knots) - 1)
    at_knot = progress == knots[index]
    span = torch.where(at_knot, 1, knots[after] - knots[index])
    weight = ((progress - knots[index]) / span)[:, None]
    # from the nearer knot: just before a knot, weight can round to 1, and left + rise can differ from the knot's value
    rise = values[after] - left
    between = torch.where(weight < 0.5, left + weight * rise, values[after] - (1 - weight) * rise)
    return torch.where(at_knot[:, None], left, between)
