"""Smooth directions in the space of schedules: a few numbers in which a correction c(u, layer) is learned.

    phi_ij(u, d) = hat_i(u) P_j(2 d - 1)        i < moments, j < depths

hat_i is the piecewise linear function that is 1 at the i-th of equally spaced moments in progress u and 0 at the
others; P_j is the Legendre polynomial of degree j in the relative depth d. So each number moves a control around one
moment of the run: in all layers alike (P_0), more towards the output (P_1), or less in the middle (P_2). A network-wide
control has P_0 only.

The moments and depths are the largest that keep to a number of directions: a few numbers, each on the scale of one
log-correction, can be perturbed and measured; hundreds of weights, perturbed one by one, explore nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from metasched.core.layer import Layer
from metasched.methods.base import Control

_SIZES = ((5, 3), (4, 3), (4, 2), (3, 2), (2, 2), (2, 1), (1, 1))  # moments, depths: from many to few


class Direction(NamedTuple):
    """One number of a correction.

    Attributes:
        control: its name.
        output: ``value`` (of a free control, or the rate of change of a monotone one), ``start`` or ``end``.
        moment: progress at which it is largest.
        depth: degree of its polynomial in depth.
        index: of its moment.
    """

    control: str
    output: str
    moment: float
    depth: int
    index: int


def directions(controls: Sequence[Control], num_layers: int, most: int) -> list[Direction]:
    """The directions of the learned controls, at most ``most`` if that is possible (at least one for each output).

    Args:
        controls: the learned ones.
        num_layers: of the network; as many depths are told apart at most.
        most: see above.

    >>> free = Control("c", 0.5, 2.0, "one", "free", end=None, scale="log")
    >>> [(d.moment, d.depth) for d in directions([free], num_layers=9, most=4)]
    [(0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)]
    """
    found: list[Direction] = []
    for moments, depths in _SIZES:
        found = [d for control in controls for d in _of_control(control, moments, min(depths, num_layers))]
        if len(found) <= most:
            break
    return found


def _of_control(control: Control, moments: int, depths: int) -> list[Direction]:
    depths = 1 if control.granularity == "network" else depths
    at = [i / max(1, moments - 1) for i in range(moments)]
    own = [Direction(control.name, "value", u, j, i) for i, u in enumerate(at) for j in range(depths)]
    if control.direction == "free":
        return own
    own += [Direction(control.name, "start", 0.0, j, 0) for j in range(depths)]
    if control.end is None:
        own += [Direction(control.name, "end", 1.0, j, 0) for j in range(depths)]
    return own


def fields(found: Sequence[Direction], progress: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """The values [D, K, L] of directions of one control and output, at progress [K] and the layers' depths."""
    m = 2 * progress.new_tensor([layer.depth for layer in layers]) - 1
    in_depth = (torch.ones_like(m), m, (3 * m**2 - 1) / 2)
    moments = 1 + max(d.index for d in found)
    if moments == 1:
        return torch.stack([torch.ones_like(progress)[:, None] * in_depth[d.depth] for d in found])
    at = [(1 - (progress * (moments - 1) - d.index).abs()).clamp_min(0) for d in found]
    return torch.stack([hat[:, None] * in_depth[d.depth] for hat, d in zip(at, found, strict=True)])
