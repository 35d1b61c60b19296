"""Tasks of inputs and targets in tensors: what the built-in data sets are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import nn

from metasched.core.randomness import generator, of_run, permutation
from metasched.tasks.base import Model, Part, Task, place

_EVALUATION_BATCH = 1000
_EVALUATION_NUMBERS = _EVALUATION_BATCH * 3 * 64 * 64  # of larger images there are fewer in a batch
_MOST_FOR_STATISTICS = 100_000  # examples


Orders = dict[int, tuple[int, torch.Tensor]]  # seed -> epoch, and its order of all examples


class Split(NamedTuple):
    """Inputs [N, ...] and targets [N, ...]."""

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


@dataclass(frozen=True, eq=False)
class SupervisedTask(Task):
    """A task with one tensor in and one tensor out.

    Attributes:
        name: for logs and files.
        train: what the inner runs train on.
        validation: what the outer loss is measured on (meta-validation): in one pass, so that it is in memory.
        test: read by ``compare`` only.
        model: makes the float network.
        criterion: (outputs, targets) -> 0-d mean loss.
        metric: (outputs, targets) -> 0-d mean score, higher is better (accuracy).
        batch_size: examples of one inner step (at most the training set).
        worst_score: see Task; 0, the lowest accuracy.
    """

    name: str
    train: Split | Stored
    validation: Split
    test: Split | Stored
    model: Callable[[], nn.Module]
    criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    metric: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    batch_size: int
    worst_score: float | None = 0.0
    draws: bool = False

    @property
    def maps(self) -> bool:
        """Where the examples are in memory."""
        return not isinstance(self.train, Stored)

    def build(self) -> nn.Module:
        """See Task."""
        return self.model()

    @property
    def batches_per_epoch(self) -> float:
        """See Task."""
        return len(self.train.x) / self.batch_size

    def positions(self, seed: int, step: int, orders: Orders | None = None) -> torch.Tensor:
        """The examples of a step's batch: epochs of random permutations, a function of (seed, step) alone.

        ``orders`` remembers the last epoch of each seed.
        """
        per_epoch = max(1, len(self.train.x) // self.batch_size)
        epoch, index = divmod(step, per_epoch)
        orders = {} if orders is None else orders
        if seed not in orders or orders[seed][0] != epoch:
            orders[seed] = epoch, permutation(seed, "batches", epoch, n=len(self.train.x))
        return orders[seed][1][index * self.batch_size : (index + 1) * self.batch_size]

    def batch(self, seed: int, step: int) -> Split:
        """The training batch of a step."""
        orders: Orders = {}  # a recorded step keeps it with the function
        chosen = of_run(seed, step, lambda s, t: self.positions(s, t, orders), "positions", self.train.x.device)
        return Split(self.train.x[chosen], self.train.y[chosen])

    def loss(self, model: Model, batch: Split) -> torch.Tensor:
        """The criterion of outputs and targets, 0-d."""
        return self.criterion(model(batch.x), batch.y)

    def outer_batch(self) -> Split:
        """The whole meta-validation part."""
        return self.validation

    def judge(self, model: Model, batch: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """Outer loss and score, both 0-d, from one pass."""
        outputs = model(batch.x)
        return self.criterion(outputs, batch.y), self.metric(outputs.detach(), batch.y)

    def judged_on(self, size: int | None, seed: int, step: int) -> Self:
        """With that many random examples of the meta-validation part as outer batch."""
        if size is None:
            return self
        x, y = self.validation
        chosen = torch.randperm(len(x), generator=generator(seed, "held out", step))[:size].to(x.device)
        return replace(self, validation=Split(x[chosen], y[chosen]))

    def score(self, model: Model, part: Part) -> float:
        """The metric over all outputs of a part, which are computed in batches."""
        split = self.validation if part == "validation" else self.test
        parts = torch.arange(len(split.x)).split(_evaluation_batch(split.x))
        outputs = [model(_read(split.x, places)) for places in parts]
        return float(self.metric(torch.cat(outputs), split.y))

    def calibrate(self, model: Model) -> None:
        """Over the training set, or its first 100,000 examples."""
        x = self.train.x
        # equal parts: a rest of few examples would weigh as much as a whole batch, and one cannot be normalized
        seen = torch.arange(min(len(x), _MOST_FOR_STATISTICS))
        for places in seen.tensor_split(-(-len(seen) // _evaluation_batch(x))):
            model(_read(x, places))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """The task with its tensors on a device, and the floating ones in a dtype."""
        return replace(
            self,
            train=self.train._replace(**_moved(self.train, device, dtype)),
            validation=self.validation._replace(**_moved(self.validation, device, dtype)),
            test=self.test._replace(**_moved(self.test, device, dtype)),
        )


def _moved(part: Split | Stored, device: torch.device | str, dtype: torch.dtype) -> dict[str, Any]:
    x = place(part.x, device, dtype) if isinstance(part.x, torch.Tensor) else part.x.to(device, dtype)
    return {"x": x, "y": place(part.y, device, dtype)}


def _evaluation_batch(x: torch.Tensor | Inputs) -> int:
    return max(1, min(_EVALUATION_BATCH, _EVALUATION_NUMBERS // math.prod(x.shape[1:])))


def _read(x: torch.Tensor | Inputs, places: torch.Tensor) -> torch.Tensor:
    """The inputs at places that follow each other."""
    return x[int(places[0]) : int(places[-1]) + 1]
