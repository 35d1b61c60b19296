"""Steps that are recorded once and replayed, as CUDA graphs are: a replay repeats operations, and runs no Python.

So a step that is recorded may read no tensor's value on the host, and what the host computes for each step (indices of
batches, random numbers) must be in tensors that stay where they are and are filled before each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

Make = Callable[[int, int], torch.Tensor]  # (seed, step) -> tensor on the CPU


class _Value(NamedTuple):
    make: Make
    tensor: torch.Tensor  # [N, ...]


class HostValues:
    """Functions of seed and step, computed on the host: a tensor [N, ...] for each, filled anew for each step.

    >>> values = HostValues([3, 5])
    >>> sums = values.of("sum", lambda seed, step: torch.tensor(seed + step), 0, "cpu")
    >>> values.fill(10)
    >>> sums.tolist()
    [13, 15]
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = tuple(seeds)
        self._values: dict[Hashable, _Value] = {}

    def of(self, key: Hashable, make: Make, step: int, device: torch.device | str) -> torch.Tensor:
        """The tensor [N, ...] of a key, on a device. The first call makes it, for this step; later ones return it."""
        if key not in self._values:
            self._values[key] = _Value(make, self._made(make, step).to(device))
        return self._values[key].tensor

    def fill(self, step: int) -> None:
        """Fill all tensors for a step. A GPU may still be at work on the replay before."""
        for make, tensor in self._values.values():
            made = self._made(make, step)
            if tensor.is_cuda:  # memory that torch keeps until the copy is done, so that nobody waits for it
                made = made.pin_memory()
            tensor.copy_(made, non_blocking=True)

    def _made(self, make: Make, step: int) -> torch.Tensor:
        return torch.stack([make(seed, step) for seed in self._seeds])


# Not a ContextVar: on a GPU, backward passes run in a thread of torch's.
_now: HostValues | None = None


@contextmanager
def recording(values: HostValues) -> Iterator[None]:
    """Within: steps read no values on the host, and take those that it computes from ``values``."""
    global _now
    assert _now is None, "recordings do not nest"
    _now = values
    try:
        yield
    finally:
        _now = None


def host_values() -> HostValues | None:
    """Where a step that is being recorded takes values of the host from; None: nothing is recorded."""
    return _now


def recorded() -> bool:
    """Whether the step that runs is being recorded; all ways that a function may go then give the same numbers."""
    return _now is not None
