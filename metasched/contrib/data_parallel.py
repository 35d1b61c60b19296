"""One inner run on several processes: each takes a part of every batch, and all of them take the same step.

    g = 1/P sum_p grad L(part p of the batch),   summed in the order of the parts

Losses and the running statistics of batch normalization are averaged likewise; a part is normalized by its own
statistics. All else is computed by every process from the same numbers, so that all hold the same bits, and they are
those of one process that goes through the parts one after the other (``Alone``). ``Together`` looks at that every 100
steps. What is drawn for activations is the same in each part.
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
from metasched.tasks.supervised import SupervisedTask
from metasched.training.finite import FINITE, all_finite
from metasched.training.loop import InnerRun
from metasched.training.step import InnerProblem, TrainingState, training_loss

_CHECK_EVERY = 100  # steps


class Exchange(Protocol):
    """How the parts of a batch come together."""

    @property
    def parts(self) -> int:
        """How many there are."""
        ...

    @property
    def own(self) -> range:
        """Those that this process computes."""
        ...

    def gather(self, found: Sequence[Tensors]) -> list[Tensors]:
        """What was found for all parts, in their order, from what was for its own."""
        ...

    def check(self, state: TrainingState, step: int) -> None:
        """Refuses a state that is not the same everywhere.

        Raises:
            MetaschedError: it is not.
        """
        ...


@dataclass(frozen=True)
class Alone:
    """All parts in this process."""

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
    """One part for each rank of torch.distributed, whose process group is there."""

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
            problem = f"after step {step} rank {other[0]} holds other bits than rank 0"
            raise MetaschedError("torchrun", problem, "use equal machines, and the same files and versions on each")


@dataclass(frozen=True, eq=False)
class PartOfTask(SupervisedTask):
    """A task of which each batch is one part."""

    part: int = 0
    parts: int = 1

    def positions(self, seed: int, step: int) -> torch.Tensor:
        """Of the part: as many in each, and one after the other the whole batch."""
        return super().positions(seed, step).tensor_split(self.parts)[self.part]


def train_in_parts(
    problem: InnerProblem, controls: Mapping[str, torch.Tensor], exchange: Exchange | None = None
) -> InnerRun:
    """``loop.train``, each batch in parts.

    Args:
        problem: from its seed; the same in all processes.
        controls: {control: [T, L]}.
        exchange: how the parts come together; None: one part, which is ``loop.train``.

    Raises:
        MetaschedError: batches that cannot be split evenly, or processes that hold different bits.
    """
    exchange = exchange or Alone()
    parts, task = exchange.parts, problem.task
    if not isinstance(task, SupervisedTask):
        raise MetaschedError("task", "has batches of its own form, which are not split", "train in one process")
    batch = task.batch_size
    if batch % parts or batch < 2 * parts:
        wrong = f"{batch} examples are not two or more for each of {parts} parts, and as many for each"
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
    own: Sequence[InnerProblem], exchange: Exchange, state: TrainingState, controls: Tensors, step: int
) -> tuple[TrainingState, torch.Tensor]:
    """``inner_step`` without a graph, from the problems of the parts that are this process's own; and the loss."""
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
    """The mean of each tensor, summed in the order given; of whole numbers, which count, the first.

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
    """Within: the ranks of torchrun as parts of a batch, by NCCL on GPUs and gloo on CPUs; None without torchrun."""
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
    """A hash of all bits of a state."""
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
