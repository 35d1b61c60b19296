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
from metasched.network.quantize import Tensors, rows
from metasched.runs.ranks import join_group, launched, leave_group, see_own_gpu
from metasched.tasks.base import Task
from metasched.training.finite import FINITE, all_finite
from metasched.training.loop import InnerRun
from metasched.training.step import InnerProblem, TrainingState, training_loss

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


@dataclass(frozen=True)
class PartOfTask(Task):
    """A task whose batches are one part of the batches of another task."""

    part: int = 0
    parts: int = 1

    def positions(self, seed: int, step: int) -> torch.Tensor:
        """Positions of the examples of this part, int64; the parts have equal sizes and add up to the batch."""
        return super().positions(seed, step).tensor_split(self.parts)[self.part]


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
    parts, batch = exchange.parts, problem.task.batch_size
    if batch % parts or batch < 2 * parts:
        wrong = f"{batch} examples cannot be split into {parts} equal parts of at least 2"
        raise MetaschedError("task.batch", wrong, f"use {max(2, batch // parts) * parts}")
    own = [replace(problem, task=_part(problem.task, part, parts)) for part in exchange.own]
    state = problem.initial(rows(controls, 0))
    losses = []
    for step in range(problem.steps):
        state, loss = step_in_parts(own, exchange, state, rows(controls, step), step)
        losses.append(loss)
        if (step + 1) % _CHECK_EVERY == 0 or step + 1 == problem.steps:
            exchange.check(state, step)
    return InnerRun(state, torch.stack(losses))


def step_in_parts(
    own: Sequence[InnerProblem], exchange: Exchange, state: TrainingState, controls: Tensors, step: int
) -> tuple[TrainingState, torch.Tensor]:
    """One inner step without a graph.

    Args:
        own: the problems of the parts that this process computes.
        exchange: exchange between the parts.
        state: state before the step.
        controls: control -> [L], at this step.
        step: index of the step.

    Returns:
        the state after the step, and the loss, 0-d.
    """
    problem = own[0]
    params = {name: p.detach().requires_grad_() for name, p in state.params.items()}

    def at(params: Tensors) -> TrainingState:
        return state._replace(params=params, buffers={name: b.clone() for name, b in state.buffers.items()})

    def slopes(part: InnerProblem) -> tuple[Tensors, Tensors]:
        here = at(params)
        with torch.enable_grad():
            loss, method = training_loss(part, here, controls, step)
            found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        grads = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(params.items(), found, strict=True)}
        tensors = {f"grad.{n}": g for n, g in grads.items()} | {f"buffer.{n}": b for n, b in here.buffers.items()}
        return {"loss": loss.detach(), **tensors}, method

    @torch.no_grad()
    def loss_at(params: Tensors) -> torch.Tensor:
        found = [{"loss": training_loss(part, at(params), controls, step)[0]} for part in own]
        return averaged(exchange.gather(found))["loss"]

    found, methods = zip(*(slopes(part) for part in own), strict=True)
    mean, method = averaged(exchange.gather(found)), methods[0]  # a function of the parameters: the same for all parts
    grads = {name: mean[f"grad.{name}"] for name in params}
    buffers = {name: mean[f"buffer.{name}"] for name in state.buffers}
    with torch.no_grad():
        proposed, optimizer = problem.optimizer.update(params, grads, state.optimizer, problem.hyper_at(step))
        settled, method = problem.network.update(params, proposed, method, controls, problem.seed, step, loss_at)
    settled, method = ({name: t.detach() for name, t in part.items()} for part in (settled, method))
    finite = all_finite([mean["loss"], *controls.values(), *proposed.values(), *optimizer.values()])
    health = {FINITE: state.health[FINITE] & finite}
    return TrainingState(settled, buffers, optimizer, method, health), mean["loss"]


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


def _part(task: Task, part: int, parts: int) -> PartOfTask:
    return PartOfTask(**vars(task), part=part, parts=parts)


def _like(tensors: Tensors, flat: torch.Tensor) -> Tensors:
    sizes = [t.numel() for t in tensors.values()]
    pieces = zip(tensors.items(), flat.split(sizes), strict=True)
    return {name: piece.reshape(t.shape).to(t.dtype) for (name, t), piece in pieces}
