"""A whole inner run, and the evaluation of the network that it leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from metasched.network.quantize import Tensors, rows
from metasched.tasks.base import Inputs, Split, Stored
from metasched.training.step import InnerProblem, TrainingState, inner_step

_EVALUATION_BATCH = 1000
_EVALUATION_NUMBERS = _EVALUATION_BATCH * 3 * 64 * 64  # of larger images there are fewer in a batch
_MOST_FOR_STATISTICS = 100_000  # examples


class InnerRun(NamedTuple):
    """The outcome of a run.

    Attributes:
        state: after the last step.
        losses: [T] training loss of each step.
    """

    state: TrainingState
    losses: torch.Tensor


class Stepped(NamedTuple):
    """A step that was done.

    Attributes:
        step: t.
        state: after it.
        loss: detached, 0-d, or [N] of stacked runs.
        gradients: of the parameters.
        row: the controls of the step, {control: [L]} or {control: [N, L]}.
    """

    step: int
    state: TrainingState
    loss: torch.Tensor
    gradients: Tensors
    row: Tensors


def take_steps(
    problem: InnerProblem,
    state: TrainingState,
    controls: Mapping[str, torch.Tensor],
    steps: range,
    *,
    differentiable: bool = False,
    seeds: torch.Tensor | None = None,
) -> Iterator[Stepped]:
    """Take steps one after the other, from the state before the first of them.

    Args:
        problem, state, differentiable, seeds: see ``inner_step``.
        controls: of these S steps, {control: [S, L]}; of N stacked runs {control: [S, N, L]}.
        steps: which they are.
    """
    for i, step in enumerate(steps):
        row = rows(controls, i)
        state, loss, gradients = inner_step(problem, state, row, step, differentiable=differentiable, seeds=seeds)
        yield Stepped(step, state, loss, gradients, row)


def train(problem: InnerProblem, controls: Mapping[str, torch.Tensor]) -> InnerRun:
    """Train for T steps under the controls ({control: [T, L]}), without a graph."""
    state = problem.initial(rows(controls, 0))
    losses = []
    for done in take_steps(problem, state, controls, range(problem.steps)):
        state = done.state
        losses.append(done.loss)
    return InnerRun(state, torch.stack(losses))


def harden(problem: InnerProblem, state: TrainingState) -> tuple[Tensors, Tensors]:
    """Parameters and buffers of the deployed network.

    Weights are hard; the statistics of batch normalization are estimated anew for the hard network, over the training
    set or its first 100,000 examples, because the running ones were gathered while the network was still soft.
    """
    network, x = problem.network, problem.task.train.x
    with torch.no_grad():
        hardened = network.harden(state.params, state.method)
        buffers = {name: b.clone() for name, b in state.buffers.items()}
        call = network.call(buffers)
        with _reestimating(network.module, buffers):
            # equal parts: a rest of few examples would weigh as much as a whole batch, and one cannot be normalized
            seen = torch.arange(min(len(x), _MOST_FOR_STATISTICS))
            for places in seen.tensor_split(-(-len(seen) // _evaluation_batch(x))):
                network.forward_hardened(call, hardened, _read(x, places))
    return hardened, buffers


def hardened_score(problem: InnerProblem, state: TrainingState, split: Split | Stored) -> float:
    """Mean score of the deployed network (see ``harden``, activations hard as well) on a split."""
    network, task = problem.network, problem.task
    hardened, buffers = harden(problem, state)
    with torch.no_grad():
        call = network.call(buffers)
        network.module.eval()
        try:
            parts = torch.arange(len(split.x)).split(_evaluation_batch(split.x))
            outputs = [network.forward_hardened(call, hardened, _read(split.x, places)) for places in parts]
        finally:
            network.module.train()
        return float(task.score(torch.cat(outputs), split.y))


def _evaluation_batch(x: torch.Tensor | Inputs) -> int:
    return max(1, min(_EVALUATION_BATCH, _EVALUATION_NUMBERS // math.prod(x.shape[1:])))


def _read(x: torch.Tensor | Inputs, places: torch.Tensor) -> torch.Tensor:
    """The inputs at places that follow each other."""
    return x[int(places[0]) : int(places[-1]) + 1]


@contextmanager
def _reestimating(module: nn.Module, buffers: Tensors) -> Iterator[None]:
    """Within: batch normalization gathers plain averages over what it sees, from nothing, into these buffers."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for name, b in buffers.items():
        if name.endswith(("running_mean", "num_batches_tracked")):
            b.zero_()
        elif name.endswith("running_var"):
            b.fill_(1)
    for m in norms:
        m.momentum = None
    try:
        yield
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
