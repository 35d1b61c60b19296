"""Hand-coded schedules of surrogate widths: constants, a halving, and one rule that a search found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from metasched.core.layer import Layer
from metasched.schedules.curves import Curve, HandCoded, constant

_CONSTANTS = {"050": 0.5, "075": 0.75, "100": 1.0, "150": 1.5}
_STE = "constant half-width; 0.5 with the uniform density is the straight-through estimator"
_NARROWING = (
    "this project, random search over 40 candidates on digits (nine convolutions, ternary, learned scales, 60 steps): "
    "wide at first, narrower later; weights wider towards the output, activations wider towards the input"
)
_WIDE_FIRST = (
    "this project, six numbers fitted to what the network learned on digits (nine convolutions, ternary, fixed "
    "scales, 30 steps), within the range: weights 3 quanta wide at first and 0.3 at the end, activations 2.2 and 1.0, "
    "both wider towards the output"
)


def exponential(
    progress: torch.Tensor, layers: Sequence[Layer], *, middle: float, depth: float, time: float
) -> torch.Tensor:
    """Middle exp(depth m + time v) with m = 2 d - 1 for relative depth d and v = 2 u - 1 for progress u.

    Args:
        progress: u [T] in [0, 1].
        layers: L of them; only their depths matter.
        middle: the value at the middle of depth and time.
        depth, time: slopes of its logarithm.

    Returns:
        [T, L] in the dtype of ``progress``.

    >>> exponential(torch.tensor([0.5]), [Layer("a", 0.5, "conv", "weight", 9, 9, 1.6)], middle=0.9, depth=1, time=1)
    tensor([[0.9000]])
    """
    m = progress.new_tensor([2 * layer.depth - 1 for layer in layers])
    v = 2 * progress[:, None] - 1
    return middle * torch.exp(depth * m + time * v)


def widths() -> list[HandCoded]:
    """The hand-coded schedules of the method ``widths``."""
    found = [_both(f"widths_constant_{name}", _STE, partial(constant, value=v)) for name, v in _CONSTANTS.items()]
    curves: dict[str, Curve] = {
        "weight_width": partial(exponential, middle=0.89, depth=0.33, time=-0.68),
        "activation_width": partial(exponential, middle=0.84, depth=-0.41, time=-0.54),
    }
    found.append(HandCoded("widths_narrowing", "widths", _NARROWING, curves, "linear"))
    learned: dict[str, Curve] = {
        "weight_width": partial(exponential, middle=1.0, depth=0.2, time=-1.15),
        "activation_width": partial(exponential, middle=1.5, depth=0.55, time=-0.4),
    }
    found.append(HandCoded("widths_wide_first", "widths", _WIDE_FIRST, learned, "linear"))
    halving: Curve = partial(exponential, middle=math.sqrt(0.5), depth=0.0, time=-math.log(2) / 2)
    found.append(_both("widths_halving", "this project: from 1 to 0.5, geometrically, in all layers alike", halving))
    return found


def _both(name: str, citation: str, curve: Curve) -> HandCoded:
    """One curve for the widths of weights and activations."""
    return HandCoded(name, "widths", citation, {"weight_width": curve, "activation_width": curve}, "linear")
