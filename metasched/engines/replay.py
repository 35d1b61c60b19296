"""Steps of an inner run, taken and taken again: from a stored state, with a graph that ends at leaves of its own.

A step is a function of (state, controls and hyper-parameters of the step, seed, step), so a repetition has the same
bits. What it reads enters as fresh leaves: the graph of a step never reaches into that of another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch

from metasched.core.errors import MetaschedError
from metasched.engines.base import Controls, OuterLoss, dead_layers, judge, judged_steps
from metasched.network.flat import Tensors
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import inner_step

Named = dict[tuple[str, str], torch.Tensor]  # (control, hyper or a part of the state; name) -> tensor
Stored = list[tuple[int, TrainingState]]  # (step, the state before it)
_PARTS = ("params", "optimizer", "method")  # what of a state may carry a derivative


class Steps(Protocol):
    """How a run is begun and judged; or N of them that are stacked."""

    @property
    def seeds(self) -> torch.Tensor | None:
        """Of stacked runs, [N], int64 on the CPU; None: one run, from the problem's seed."""
        ...

    def initial(self, problem: InnerProblem, first: Tensors) -> TrainingState:
        """The state before the first step, from the controls of that step, {control: [L]} or {control: [N, L]}."""
        ...

    def judge(
        self, problem: InnerProblem, outer: OuterLoss, state: TrainingState, row: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outer loss and score of a state, 0-d or [N]; ``row`` are the controls of the last step, [L] or [N, L]."""
        ...

    def dead_layers(self, problem: InnerProblem, gradients: Tensors) -> int | torch.Tensor:
        """How many quantized layers have a weight gradient that is zero everywhere: a number, or [N]."""
        ...


class Single:
    """One run."""

    seeds = None

    def initial(self, problem: InnerProblem, first: Tensors) -> TrainingState:
        """See Steps."""
        return problem.initial(first)

    def judge(
        self, problem: InnerProblem, outer: OuterLoss, state: TrainingState, row: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Steps."""
        return judge(problem, outer, state, row, problem.network.call(problem.network.buffers()))

    def dead_layers(self, problem: InnerProblem, gradients: Tensors) -> int:
        """See Steps."""
        return dead_layers(problem, gradients)


class Link(NamedTuple):
    """A step with its graph, from leaves (rows of the inputs, and the state before it) to the state and the loss."""

    leaves: Named
    after: TrainingState
    loss: torch.Tensor | None


class Taken(NamedTuple):
    """What a step gave; without a graph it has no leaves."""

    leaves: Named
    after: TrainingState
    gradients: Tensors
    loss: torch.Tensor | None
    score: torch.Tensor | None


@dataclass(frozen=True)
class Recording:
    """What a forward pass leaves for the way back, which empties ``stored`` and ``kept``.

    Attributes:
        problem, outer: what is trained, and how it is judged.
        steps: how that is done.
        judged: the steps after which the outer loss is taken.
        inputs: controls and hyper-parameters, whole: [T, ...] or 0-d.
        strides: see ``memory.Plan``.
        start: the initial state, as a function of the first rows.
        stored: states between which steps are taken again.
        kept: the last steps, with their graphs.
    """

    problem: InnerProblem
    outer: OuterLoss
    steps: Steps
    judged: range
    inputs: Named
    strides: tuple[int, ...]
    start: Link
    stored: Stored
    kept: list[Link]


def begin(
    problem: InnerProblem, controls: Controls, outer: OuterLoss, strides: tuple[int, ...], steps: Steps
) -> tuple[Recording, TrainingState]:
    """A recording without steps, and the detached initial state; ``controls`` are {control: [T, L]} or [T, N, L]."""
    hyper = {("hyper", name): v for name, v in problem.hyper.items() if isinstance(v, torch.Tensor)}
    inputs: Named = {**{("control", name): v for name, v in controls.items()}, **hyper}
    first = _rows(inputs, 0, leaves=True)
    with torch.enable_grad():
        state = steps.initial(problem, {name: v for (part, name), v in first.items() if part == "control"})
    start, judged = Link(first, state, None), judged_steps(problem, outer)
    return Recording(problem, outer, steps, judged, inputs, strides, start, [], []), detached(state)


def take(recording: Recording, state: TrainingState, step: int, *, differentiable: bool) -> Taken:
    """One step, and the judgement after it: in one graph, because the sums in it then have the order of unrolling."""
    leaves = _rows(recording.inputs, step, leaves=differentiable)
    problem, row = _with_inputs(recording, leaves)
    if differentiable:
        carried = _state_leaves(recording, state)
        leaves |= carried
        state = _with(state, carried)
    loss = score = None
    with torch.set_grad_enabled(differentiable):
        after, _, gradients = inner_step(
            problem, state, row, step, differentiable=differentiable, seeds=recording.steps.seeds
        )
        if step in recording.judged:
            loss, score = recording.steps.judge(problem, recording.outer, after, row)
    for name, buffer in after.buffers.items():
        if buffer.requires_grad:
            raise MetaschedError(
                f"model.{name}",
                "is a buffer that the loss depends on differentiably, which the sweep would miss",
                "detach what the model writes into it, or set meta.estimator to unroll",
            )
    return Taken(leaves if differentiable else {}, after, gradients, loss, score)


def link(recording: Recording, state: TrainingState, step: int) -> Link:
    """One step with its graph."""
    taken = take(recording, state, step, differentiable=True)
    return Link(taken.leaves, taken.after, taken.loss)


def links(recording: Recording) -> Iterator[tuple[int, Link]]:
    """All steps with their graphs, the last one first; those that were not kept are taken again."""
    step = recording.problem.steps
    while recording.kept:
        step -= 1
        yield step, recording.kept.pop()
    for at, state in _states(recording, recording.stored, step, recording.strides):
        yield at, link(recording, state, at)


def detached(state: TrainingState) -> TrainingState:
    """The same values without a graph."""
    return _with(state, {key: value.detach() for key, value in named(state).items()})


def named(state: TrainingState) -> Named:
    """What of a state may carry a derivative."""
    return {(part, name): value for part in _PARTS for name, value in getattr(state, part).items()}


def at_step(value: torch.Tensor, step: int) -> torch.Tensor:
    """What a step reads of an input: the row of [T, ...], or a 0-d tensor as it is."""
    return value[step] if value.dim() else value


def _states(
    recording: Recording, stored: Stored, end: int, strides: tuple[int, ...]
) -> Iterator[tuple[int, TrainingState]]:
    """The states before the steps up to ``end``, the last one first, from every ``strides[0]``-th of them."""
    stride, deeper = strides[0], strides[1:]
    while stored:
        step, state = stored.pop()
        if deeper:
            segment_end = min(step + stride, end)
            segment = _run_again(recording, state, step, segment_end, deeper[0])
            yield from _states(recording, segment, segment_end, deeper)
        else:
            yield step, state


def _run_again(recording: Recording, state: TrainingState, step: int, end: int, stride: int) -> Stored:
    """Every ``stride``-th state from ``step`` on, before ``end``."""
    stored = [(step, state)]
    for at in range(step, step + (end - 1 - step) // stride * stride):
        problem, row = _with_inputs(recording, _rows(recording.inputs, at, leaves=False))
        state, _, _ = inner_step(problem, state, row, at, differentiable=False, seeds=recording.steps.seeds)
        if (at + 1 - step) % stride == 0:
            stored.append((at + 1, state))
    return stored


def _with_inputs(recording: Recording, values: Named) -> tuple[InnerProblem, Tensors]:
    """The problem with the hyper-parameters of one step, and the controls of that step, {control: [L]}."""
    hyper = {name: v for (part, name), v in values.items() if part == "hyper"}
    row = {name: v for (part, name), v in values.items() if part == "control"}
    problem = recording.problem
    return replace(problem, hyper={**problem.hyper, **hyper}) if hyper else problem, row


def _rows(inputs: Named, step: int, *, leaves: bool) -> Named:
    """What a step reads of the inputs; as leaves they require gradients where the inputs do."""
    return {
        key: at_step(value, step).detach().requires_grad_(leaves and value.requires_grad)
        for key, value in inputs.items()
    }


def _state_leaves(recording: Recording, state: TrainingState) -> Named:
    """New leaves for what of a state may depend on the inputs.

    The parameters, whose gradient the step itself takes, and every other floating tensor that is not still the constant
    that it was at the start.
    """
    start, carried = named(recording.start.after), {}
    for key, value in named(state).items():
        constant = value.data_ptr() == start[key].data_ptr() and not start[key].requires_grad
        if key[0] == "params" or (value.is_floating_point() and not constant):
            carried[key] = value.detach().requires_grad_()
    return carried


def _with(state: TrainingState, new: Named) -> TrainingState:
    parts = {part: {name: new.get((part, name), v) for name, v in getattr(state, part).items()} for part in _PARTS}
    return state._replace(**parts)
