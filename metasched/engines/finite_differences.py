"""Central differences of an outer loss: the oracle of a hypergradient wherever the path to the loss is smooth.

    d = (f(h) - f(-h)) / 2h,   h = 1e-6,   error = |g - d| / max(|g|, |d|)

In float64 d is good to about 1e-9 of the size of f. Kinks and jumps (of bounded noise, ReLU, a changed order of
freezing) are rare but not absent: where the differences of steps h and 2h contradict each other they prove nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from metasched.core.randomness import generator
from metasched.engines.base import Controls, OuterLoss, judge
from metasched.methods.base import Control
from metasched.network.flat import rows
from metasched.training.loop import train
from metasched.training.state import InnerProblem

STEP = 1e-6
TOLERANCE = 1e-6  # the largest relative error of a derivative that is right


def outer_loss(problem: InnerProblem, controls: Controls, outer: OuterLoss) -> float:
    """The outer loss after the last step of plain training ({control: [T, L]}): nothing of the estimators is in it."""
    state = train(problem, controls).state
    call = problem.network.call(problem.network.buffers())
    with torch.no_grad():
        return float(judge(problem, outer, state, rows(controls, problem.steps - 1), call)[0])


def uphill(slope: torch.Tensor, layer: int, seed: int, index: int, scale: float = 1.0) -> torch.Tensor:
    """A random direction [T, L] in one layer's column, with the signs of the slope, so that its terms do not cancel.

    Its size is about ``scale``: steps are shares of that.
    """
    size = torch.randn(len(slope), generator=generator(seed, "directions", index), dtype=torch.float64).abs()
    direction = torch.zeros_like(slope)
    direction[:, layer] = scale * size.to(slope) * torch.where(slope[:, layer] < 0, -1.0, 1.0)
    return direction


def span(control: Control) -> float:
    """The length of the range of a control on a linear scale, if it is wider than 1, else 1; for ``uphill``."""
    return max(1.0, control.high - control.low) if control.scale == "linear" else 1.0


def error_against_differences(function: Callable[[float], float], derivative: float) -> float | None:
    """Relative error of what should be d function(h) / dh at h = 0; infinity for a derivative that is not finite.

    None where the derivative is off but the differences of steps h and 2h contradict each other too, by more than a
    tenth of the tolerance: there is a kink between them, or rounding hides a change so small.

    >>> import math
    >>> error = error_against_differences(lambda h: math.exp(2 * h), 2.0)
    >>> error is not None and error < 1e-9
    True
    >>> error_against_differences(lambda h: max(h, 0.3e-6), 1.0) is None
    True
    """
    if not math.isfinite(derivative):
        return math.inf
    difference = (function(STEP) - function(-STEP)) / (2 * STEP)
    error = _relative(difference, derivative)
    if error <= TOLERANCE:
        return error
    wider = (function(2 * STEP) - function(-2 * STEP)) / (4 * STEP)
    return error if _relative(difference, wider) <= TOLERANCE / 10 else None


def _relative(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0
