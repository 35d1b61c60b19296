"""What an inner run trains: data in three disjoint parts, a model, a loss, batches that are a function of the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from metasched.randomness import permutation


class Split(NamedTuple):
    """Inputs [N, ...] and targets [N]."""

    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True)
class Task:
    """Data, model and loss of an inner run.

    Attributes:
        name: for logs and files.
        train: what the inner runs train on.
        validation: what the outer loss is measured on (meta-validation).
        test: read by ``compare`` only.
        build: makes the float network; its weights are drawn from torch's global generator, which the caller seeds.
        loss: (outputs, targets) -> 0-d mean loss.
        score: (outputs, targets) -> 0-d mean score, higher is better (accuracy).
        batch_size: examples of one inner step (at most the training set).
    """

    name: str
    train: Split
    validation: Split
    test: Split
    build: Callable[[], nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    batch_size: int

    def batch(self, seed: int, step: int) -> Split:
        """The training batch of a step: epochs of random permutations, a function of (seed, step) alone."""
        per_epoch = max(1, len(self.train.x) // self.batch_size)
        epoch, index = divmod(step, per_epoch)
        order = permutation(seed, "batches", epoch, n=len(self.train.x))
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size].to(self.train.x.device)
        return Split(self.train.x[chosen], self.train.y[chosen])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Task:
        """The task with its inputs on a device and in a floating dtype (integer targets keep theirs)."""

        def move(split: Split) -> Split:
            y = split.y.to(device, dtype) if split.y.is_floating_point() else split.y.to(device)
            return Split(split.x.to(device, dtype), y)

        return Task(
            self.name,
            move(self.train),
            move(self.validation),
            move(self.test),
            self.build,
            self.loss,
            self.score,
            self.batch_size,
        )
