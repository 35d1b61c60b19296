"""One inner run on several processes: each computes a part of every batch, and all take the same step.

    g = 1/P sum_p grad L(part p of the batch),   summed in the order of the parts

Losses and the running statistics of batch normalization are averaged in the same way; each part is normalized with its
own batch statistics. Every process computes the rest from the same numbers, so all processes have the same bits, equal
to those of one process that computes the parts one after the other (``Alone``). ``Together`` checks this every 100
steps. Random numbers for activations are the same in each part.

``Tensors`` is a dict of tensors [...] by name, in the dtype of the network, usually float32.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from metasched.core.errors import MetaschedError
from metasched.network.flat import ControlRow, Tensors, rows
from metasched.runs.ranks import join_group, launched, leave_group, see_own_gpu
from metasched.tasks.supervised import Orders, SupervisedTask
from metasched.training.loop import InnerRun
from metasched.training.loss import training_loss
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import Evaluated, advance, evaluate, with_leaves

_CHECK_EVERY = 100  # steps


class Exchange(Protocol):
    """Exchange of results between the processes that compute the parts of a batch."""

    @property
    def parts(self) -> int:
        """Number of parts."""
        ...

    @property
    def own(self) -> range:
        """Indices of the parts that this process computes."""
        ...

    def gather(self, found: Sequence[Tensors]) -> list[Tensors]:
        """The results of all parts, in order, from those of the process's own parts.

        Args:
            found: for each own part, {name: tensor [...]} in one floating dtype.

        Returns:
            the dicts of all parts, with the same names and shapes.
        """
        ...

    def check(self, state: TrainingState, step: int) -> None:
        """Checks that all processes have the same state.

        Raises:
            MetaschedError: the state of a process has different bits.
        """
        ...


@dataclass(frozen=True)
class Alone:
    """Computes all parts in this process."""

    parts: int = 1

    @property
    def own(self) -> range:
        """See Exchange."""
        return range(self.parts)

    def gather(self, found: Sequence[Tensors]) -> list[Tensors]:
        """See Exchange."""
        return list(found)

    def check(self, state: TrainingState, step: int) -> None:
        """See Exchange."""


@dataclass(frozen=True)
class Together:
    """Computes one part on each rank of torch.distributed, whose process group must exist."""

    rank: int
    parts: int

    @property
    def own(self) -> range:
        """See Exchange."""
        return range(self.rank, self.rank + 1)

    def gather(self, found: Sequence[Tensors]) -> list[Tensors]:
        """See Exchange."""
        import torch.distributed as dist

        (own,) = found
        flat = torch.cat([t.flatten() for t in own.values()])
        everywhere = [torch.empty_like(flat) for _ in range(self.parts)]
        dist.all_gather(everywhere, flat)
        return [_like(own, values) for values in everywhere]

    def check(self, state: TrainingState, step: int) -> None:
        """See Exchange."""
        import torch.distributed as dist

        digests: list[str | None] = [None] * self.parts
        dist.all_gather_object(digests, digest(state))
        other = [rank for rank, found in enumerate(digests) if found != digests[0]]
        if other:
            problem = f"after step {step}, the state of rank {other[0]} differs from that of rank 0"
            raise MetaschedError("torchrun", problem, "use identical machines with the same files and versions")


@dataclass(frozen=True, eq=False)
class PartOfTask(SupervisedTask):
    """A task of which each batch is one part."""

    part: int = 0
    parts: int = 1

    def positions(self, seed: int, step: int, orders: Orders | None = None) -> torch.Tensor:
        """Positions of the examples of this part, int64; the parts have equal sizes and add up to the batch."""
        return super().positions(seed, step, orders).tensor_split(self.parts)[self.part]


def train_in_parts(
    problem: InnerProblem, controls: Mapping[str, torch.Tensor], exchange: Exchange | None = None
) -> InnerRun:
    """Trains like ``loop.train``, with each batch in parts.

    Args:
        problem: the inner problem, the same in all processes.
        controls: {control: [T, L]}.
        exchange: exchange between the parts; None: one part, which is ``loop.train``.

    Returns:
        the final state and the losses [T].

    Raises:
        MetaschedError: batches cannot be split evenly, or the states of processes differ.
    """
    exchange = exchange or Alone()
    parts, task = exchange.parts, problem.task
    if not isinstance(task, SupervisedTask):
        raise MetaschedError("task", "has batches of its own form, which are not split", "train in one process")
    batch = task.batch_size
    if batch % parts or batch < 2 * parts:
        wrong = f"{batch} examples cannot be split into {parts} equal parts of at least 2"
        raise MetaschedError("task.batch", wrong, f"use {max(2, batch // parts) * parts}")
    own = [replace(problem, task=_part(task, part, parts)) for part in exchange.own]
    state = problem.initial(rows(controls, 0))
    losses = []
    for step in range(problem.steps):
        state, loss = step_in_parts(own, exchange, state, rows(controls, step), step)
        losses.append(loss)
        if (step + 1) % _CHECK_EVERY == 0 or step + 1 == problem.steps:
            exchange.check(state, step)
    return InnerRun(state, torch.stack(losses))


def step_in_parts(
    own: Sequence[InnerProblem], exchange: Exchange, state: TrainingState, row: ControlRow, step: int
) -> tuple[TrainingState, torch.Tensor]:
    """``inner_step`` without a graph, from the problems of the parts that are this process's own.

    Args:
        own: one problem a part, which differ in their task only.
        exchange: how the parts come together.
        state: before the step.
        row: the controls of this step, {control: [L]}.
        step: t.

    Returns:
        the new state, and the loss, 0-d.
    """
    state = with_leaves(state, keep_graph=False)
    parts = [evaluate(part, state, row, step) for part in own]
    mean = averaged(exchange.gather([_flat(part) for part in parts]))
    found = Evaluated(
        loss=mean["loss"],
        gradients={name: mean[f"grad.{name}"] for name in state.params},
        buffers={name: mean[f"buffer.{name}"] for name in state.buffers},
        method=parts[0].method,  # a function of the parameters: the same for all parts
    )

    @torch.no_grad()
    def loss_at(params: Tensors) -> torch.Tensor:
        losses = []
        for part in own:
            here = state._replace(params=params, buffers={name: b.clone() for name, b in state.buffers.items()})
            losses.append({"loss": training_loss(part, here, row, step)[0]})
        return averaged(exchange.gather(losses))["loss"]

    return advance(own[0], state, found, row, step, loss_at=loss_at), found.loss


def _flat(found: Evaluated) -> Tensors:
    """What the parts of a batch exchange: loss, gradients and buffers under one name each."""
    gradients = {f"grad.{name}": g for name, g in found.gradients.items()}
    return {"loss": found.loss.detach(), **gradients, **{f"buffer.{name}": b for name, b in found.buffers.items()}}


def averaged(found: Sequence[Tensors]) -> Tensors:
    """The mean of each tensor [...] over the dicts, summed in order; integer tensors are counters: the first.

    >>> averaged([{"a": torch.tensor(1.0)}, {"a": torch.tensor(2.0)}])
    {'a': tensor(1.5000)}
    """

    def mean(name: str, first: torch.Tensor) -> torch.Tensor:
        if not first.is_floating_point():
            return first
        total = first
        for other in found[1:]:
            total = total + other[name]
        return total / len(found)

    return {name: mean(name, t) for name, t in found[0].items()}


@contextmanager
def process_group() -> Iterator[Together | None]:
    """Joins the process group of torchrun (NCCL on GPUs, gloo on CPUs) inside this context; None without torchrun."""
    if not launched():
        yield None
        return
    see_own_gpu()
    join_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Together(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    finally:
        leave_group()


def digest(state: TrainingState) -> str:
    """A hash of all bits of a training state."""
    found = hashlib.blake2b(digest_size=16)
    for part in state:
        for name in sorted(part):
            found.update(name.encode() + part[name].detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _part(task: SupervisedTask, part: int, parts: int) -> PartOfTask:
    return PartOfTask(**vars(task), part=part, parts=parts)


def _like(tensors: Tensors, flat: torch.Tensor) -> Tensors:
    sizes = [t.numel() for t in tensors.values()]
    pieces = zip(tensors.items(), flat.split(sizes), strict=True)
    return {name: piece.reshape(t.shape).to(t.dtype) for (name, t), piece in pieces}
