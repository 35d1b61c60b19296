"""What an inner run trains: data in three disjoint parts, a model, a loss, batches that are a function of the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from metasched.core.randomness import permutation


class Split(NamedTuple):
    """Inputs [N, ...] and targets [N]."""

    x: torch.Tensor
    y: torch.Tensor


class Inputs(Protocol):
    """Inputs [N, ...] that are read when they are asked for: what a tensor is for them, where memory has no room."""

    @property
    def shape(self) -> torch.Size:
        """[N, ...]."""
        ...

    @property
    def device(self) -> torch.device:
        """Where what is read is put."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | torch.Tensor) -> torch.Tensor:
        """The inputs of a slice, or of positions (int64, [n])."""
        ...

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Inputs:
        """The same inputs, put on a device in a floating dtype when they are read."""
        ...


class Stored(NamedTuple):
    """Inputs that stay on disk, and targets [N]."""

    x: Inputs
    y: torch.Tensor


@dataclass(frozen=True)
class Task:
    """Data, model and loss of an inner run.

    Attributes:
        name: for logs and files.
        train: what the inner runs train on.
        validation: what the outer loss is measured on (meta-validation): in one pass, so that it is in memory.
        test: read by ``compare`` only.
        build: makes the float network; its weights are drawn from torch's global generator, which the caller seeds.
        loss: (outputs, targets) -> 0-d mean loss.
        score: (outputs, targets) -> 0-d mean score, higher is better (accuracy).
        batch_size: examples of one inner step (at most the training set).
    """

    name: str
    train: Split | Stored
    validation: Split
    test: Split | Stored
    build: Callable[[], nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    batch_size: int

    def positions(self, seed: int, step: int) -> torch.Tensor:
        """The examples of a step's batch: epochs of random permutations, a function of (seed, step) alone."""
        per_epoch = max(1, len(self.train.x) // self.batch_size)
        epoch, index = divmod(step, per_epoch)
        order = permutation(seed, "batches", epoch, n=len(self.train.x))
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    def batch(self, seed: int, step: int) -> Split:
        """The training batch of a step."""
        chosen = self.positions(seed, step).to(self.train.x.device)
        return Split(self.train.x[chosen], self.train.y[chosen])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Task:
        """The task with its inputs on a device and in a floating dtype (integer targets keep theirs)."""
        return replace(
            self,
            train=self.train._replace(**_moved(self.train, device, dtype)),
            validation=self.validation._replace(**_moved(self.validation, device, dtype)),
            test=self.test._replace(**_moved(self.test, device, dtype)),
        )


def _moved(part: Split | Stored, device: torch.device | str, dtype: torch.dtype) -> dict[str, Any]:
    y = part.y.to(device, dtype) if part.y.is_floating_point() else part.y.to(device)
    return {"x": part.x.to(device, dtype), "y": y}
