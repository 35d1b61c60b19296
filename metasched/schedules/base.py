"""The type of schedules: pure functions from progress and layers to the values of the controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from metasched.core.layer import Layer


class Schedule(Protocol):
    """``schedule(progress, layers) -> {control: values}``, differentiable in its parameters, without hidden state.

    Args:
        progress: [T], in [0, 1], any floating dtype.
        layers: the L layers of the network, in the order of the data flow.

    Returns:
        control -> values [T, L] in the dtype of ``progress``, for each control that the schedule sets.
    """

    def __call__(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """The values [T, L] of each control at progress [T]."""
        ...


def progress_of_steps(num_steps: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Progress of each step of a run: u_t = t / (T - 1), from 0 at the first step to 1 at the last; [T].

    For a run of one step u = 1.

    >>> progress_of_steps(3).tolist()
    [0.0, 0.5, 1.0]
    >>> progress_of_steps(1).tolist()
    [1.0]
    """
    assert num_steps >= 1, num_steps
    if num_steps == 1:
        return torch.ones(1, dtype=dtype)
    return torch.arange(num_steps, dtype=dtype) / (num_steps - 1)
