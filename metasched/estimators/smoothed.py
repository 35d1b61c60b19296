"""The direction to hold a hypergradient against where finite differences say nothing: the smoothed gradient.

    d/dx E f(x + sigma e) = E [ (f(x + sigma e) - f(x - sigma e)) / (2 sigma) e ],    e ~ N(0, I)

It needs values of f only, so f may be hard. The two values of a pair share all of the objective's own random numbers
(its seed is inside f), which takes most of their noise out of the difference.
Source: antithetic evolution strategies, Salimans et al., 2017, arXiv 1703.03864; Nesterov and Spokoiny, 2017.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from metasched.core.randomness import generator


def smoothed_gradient(
    objective: Callable[[torch.Tensor], float], at: torch.Tensor, sigma: float, pairs: int, seed: int
) -> torch.Tensor:
    """Unbiased estimate of the gradient of the smoothed objective, from antithetic pairs.

    Args:
        objective: deterministic; called twice a pair.
        at: x, any shape.
        sigma: standard deviation of the smoothing, in units of x; positive.
        pairs: how many; the variance falls as 1 / pairs.
        seed: of the perturbations.

    Returns:
        the shape, dtype and device of ``at``.

    >>> at = torch.tensor([1.0, -2.0], dtype=torch.float64)
    >>> slope = smoothed_gradient(lambda x: float(3 * x[0]), at, sigma=0.1, pairs=2000, seed=0)
    >>> bool((slope - torch.tensor([3.0, 0.0])).abs().max() < 0.3)
    True
    """
    assert sigma > 0 and pairs > 0, (sigma, pairs)
    at = at.detach()
    total = torch.zeros_like(at)
    for pair in range(pairs):
        draws = generator(seed, "smoothed gradient", pair)
        direction = torch.randn(at.shape, generator=draws, dtype=at.dtype).to(at.device)
        rise = objective(at + sigma * direction) - objective(at - sigma * direction)
        total += rise / (2 * sigma) * direction
    return total / pairs
