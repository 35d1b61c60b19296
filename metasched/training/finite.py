"""Whether all numbers of an inner step are finite.

Each step adds up all that it read and made (controls, loss, the optimizer's proposal and its state): a sum is finite
only where all of its terms are. A run that was broken once stays so, whatever becomes of the number: a frozen weight
hides an update, a level hides a weight.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

FINITE = "finite"  # the entry of a state's health: 0-d, or [N] where N runs are stacked; false once broken


@torch.no_grad()
def all_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Whether all floating-point numbers are finite, and not so large that their sum overflows: 0-d, on their device.

    >>> all_finite([torch.ones(2), torch.tensor(float("inf"))])
    tensor(False)
    """
    return torch.cat([t.reshape(-1) for t in tensors if t.is_floating_point()]).sum().isfinite()


@torch.no_grad()
def each_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """``all_finite`` of each of N runs, [N], from stacked tensors [N, ...]; others are not of a run."""
    stacked = [t.flatten(1) if t.dim() > 1 else t[:, None] for t in tensors if t.dim() and t.is_floating_point()]
    return torch.cat(stacked, 1).sum(1).isfinite()
