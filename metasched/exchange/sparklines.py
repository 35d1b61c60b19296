"""Curves in a line of text: a sparkline, and the moments at which curves bend."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.:-=+*#"  # for a terminal that has no blocks
_SMALL = 0.01  # of the range of the values: a deviation that no moment is spent on


def sparkline(values: Sequence[float], low: float, high: float, marks: str = BLOCKS) -> str:
    """One mark for each value, the lower the smaller it is in [low, high].

    >>> sparkline([0, 0.5, 1], 0, 1)
    '▁▅█'
    >>> sparkline([2, 2], 2, 2, ASCII)
    '__'
    """
    width = high - low
    share = [(v - low) / width if width > 0 else 0.0 for v in values]
    return "".join(marks[min(len(marks) - 1, max(0, math.floor(s * (len(marks) - 1) + 0.5)))] for s in share)


def moments(progress: torch.Tensor, curves: torch.Tensor, most: int) -> list[int]:
    """Indices of the moments that tell most about curves: first and last, and where straight lines miss them.

    The moment of the largest deviation from the lines through the moments so far is added, one after the other, until
    no deviation is above a hundredth of the range of the values, or there are enough.

    Args:
        progress: [T], increasing, float64.
        curves: [T, L], float64.
        most: number of moments, at least 2.

    >>> u = torch.linspace(0, 1, 11, dtype=torch.float64)
    >>> moments(u, (u - 0.8).clamp(min=0)[:, None], 5)
    [0, 8, 10]
    """
    chosen = [0, len(progress) - 1]
    enough = _SMALL * float(curves.max() - curves.min())
    while len(chosen) < most:
        off = (curves - _through(progress, curves, chosen)).abs().amax(1)
        worst = int(off.argmax())
        if float(off[worst]) <= enough:
            break
        chosen = sorted([*chosen, worst])
    return chosen


def _through(progress: torch.Tensor, curves: torch.Tensor, chosen: Sequence[int]) -> torch.Tensor:
    """The straight lines [T, L] through the curves at the chosen moments."""
    at = progress[list(chosen)]
    right = torch.searchsorted(at, progress, right=True).clamp(1, len(chosen) - 1)
    left = right - 1
    share = ((progress - at[left]) / (at[right] - at[left]))[:, None]
    known = curves[list(chosen)]
    return known[left] + share * (known[right] - known[left])
