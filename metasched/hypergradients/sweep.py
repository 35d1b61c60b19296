"""The adjoint sweep: the derivative of plain unrolling, bit for bit, from the graph of one step at a time.

With the inner step s_{t+1} = f(s_t, c_t) from s_0 = f_0(c_0), and losses l_t(s_{t+1}, c_t) of the judged steps:

    a_T = 0,    (a_t, dL/dc_t) = (a_{t+1}, dL/dl_t)^T  d(s_{t+1}, l_t) / d(s_t, c_t),    t = T - 1, ..., 0

The forward pass trains without a graph and stores some states; on the way back each step is computed again, with its
graph, from the state before it. Batches and draws are functions of (seed, step), so it is the same step.
Source: reverse mode with recomputation, Griewank and Walther, 2008, chapter 12; for training: Franceschi et al., ICML
2017, arXiv 1703.01785. We differ: strides that a budget decides, and last steps that keep their graph from the forward
pass, so that a large budget makes it plain unrolling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from metasched.errors import MetaschedError
from metasched.hypergradients.base import (
    Controls,
    Hypergradient,
    OuterLoss,
    Unrolled,
    dead_layers,
    estimate_by,
    judge,
    judged_steps,
)
from metasched.hypergradients.memory import Plan, bytes_of, graph_bytes, plan
from metasched.network import Tensors
from metasched.training.step import InnerProblem, TrainingState, inner_step

_Named = dict[tuple[str, str], torch.Tensor]  # (control, hyper or a part of the state; name) -> tensor
_Stored = list[tuple[int, TrainingState]]  # (step, the state before it)
_PARTS = ("params", "optimizer", "method")  # what of a state may carry a derivative


def unroll(problem: InnerProblem, controls: Controls, outer: OuterLoss, memory: int | None = None) -> Unrolled:
    """Train under the controls ({control: [T, L]}), ready to sweep back, once, from the outer loss to them.

    Args:
        problem: what is trained; tensors in its hyper-parameters that require gradients get one.
        controls: those that require gradients get one.
        outer: what is judged.
        memory: bytes that the sweep may take; None is economical (see ``memory.plan``).

    Raises:
        MetaschedError: too little memory for a single step, or a model whose buffers carry a derivative.
    """
    return sweep(problem, controls, outer, plan_for(problem, controls, outer, memory))


def estimate(schedule: nn.Module, problem: InnerProblem, outer: OuterLoss) -> Hypergradient:
    """The exact hypergradient by an economical sweep."""
    return estimate_by(unroll, schedule, problem, outer)


def plan_for(problem: InnerProblem, controls: Controls, outer: OuterLoss, memory: int | None) -> Plan:
    """The plan of ``unroll``: where several steps are judged each has a judgement in its graph, otherwise the last."""
    state, graph, judgement = cost(problem, controls, outer)
    if len(judged_steps(problem, outer)) > 1:
        return plan(problem.steps, state, graph + judgement, memory)
    return plan(problem.steps, state, graph, None if memory is None else memory - judgement)


def sweep(problem: InnerProblem, controls: Controls, outer: OuterLoss, plan: Plan) -> Unrolled:
    """As ``unroll``, by a given plan."""
    run, state = _begin(problem, controls, outer, plan.strides)
    losses, scores, dead = [], [], 0
    for step in range(problem.steps):
        keeps = step >= problem.steps - plan.kept
        if not keeps and step % plan.strides[0] == 0:
            run.stored.append((step, state))
        taken = _take(run, state, step, differentiable=keeps)
        state = _detached(taken.after)
        dead += dead_layers(problem, taken.gradients)
        if taken.loss is not None and taken.score is not None:
            losses.append(taken.loss.detach())
            scores.append(taken.score)
        if keeps:
            run.kept.append(_Link(taken.leaves, taken.after, taken.loss))
    loss = _Sweep.apply(torch.stack(losses).mean(), run, *run.inputs.values())
    return Unrolled(loss, torch.stack(scores).mean(), dead / (problem.steps * len(problem.network.layers)))


class _Link(NamedTuple):
    """A step with its graph, from leaves (rows of the inputs, and the state before it) to the state and the loss."""

    leaves: _Named
    after: TrainingState
    loss: torch.Tensor | None


class _Taken(NamedTuple):
    """What a step gave; without a graph it has no leaves."""

    leaves: _Named
    after: TrainingState
    gradients: Tensors
    loss: torch.Tensor | None
    score: torch.Tensor | None


@dataclass(frozen=True)
class _Run:
    """What the way back needs; it empties ``stored`` and ``kept``."""

    problem: InnerProblem
    outer: OuterLoss
    judged: range
    inputs: _Named
    strides: tuple[int, ...]
    start: _Link
    stored: _Stored
    kept: list[_Link]


class _Sweep(torch.autograd.Function):
    """The loss of a run as a function of its inputs."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, run: _Run, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.run = run
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, seed: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        run, ctx.run = ctx.run, None
        assert run is not None, "the way back is free for one sweep only: unroll again"
        return None, None, *_sweep_back(run, seed)


def _sweep_back(run: _Run, seed: torch.Tensor) -> list[torch.Tensor | None]:
    """The derivative in each input, for the derivative ``seed`` in the loss."""
    wrt = {key: torch.zeros_like(value) for key, value in run.inputs.items() if value.requires_grad}
    seed = seed / len(run.judged)
    adjoint: _Named = {}
    for step, link in _links(run):
        adjoint = _pull(link, adjoint, seed, wrt, step)
        del link  # before the next one is made
    _pull(run.start, adjoint, seed, wrt, 0)
    return [wrt.get(key) for key in run.inputs]


def _pull(link: _Link, adjoint: _Named, seed: torch.Tensor, wrt: _Named, step: int) -> _Named:
    """The adjoint of the state before a step from that after it; what falls to the inputs is added to ``wrt``."""
    after = _named(link.after)
    ends = [(after[key], a) for key, a in adjoint.items() if after[key].requires_grad]
    if link.loss is not None and link.loss.requires_grad:
        ends.append((link.loss, seed))
    leaves = {key: leaf for key, leaf in link.leaves.items() if leaf.requires_grad}
    if not ends or not leaves:
        return {}
    outputs, seeds = zip(*ends, strict=True)
    found = torch.autograd.grad(outputs, list(leaves.values()), seeds, allow_unused=True)
    slopes = {key: slope for key, slope in zip(leaves, found, strict=True) if slope is not None}
    for key in slopes.keys() & wrt.keys():
        _row(wrt[key], step).add_(slopes[key])
    return {key: slope for key, slope in slopes.items() if key not in wrt}


def _links(run: _Run) -> Iterator[tuple[int, _Link]]:
    """All steps with their graphs, the last one first; those that were not kept are computed again."""
    step = run.problem.steps
    while run.kept:
        step -= 1
        yield step, run.kept.pop()
    for at, state in _states(run, run.stored, step, run.strides):
        yield at, _link(run, state, at)


def _states(run: _Run, stored: _Stored, end: int, strides: tuple[int, ...]) -> Iterator[tuple[int, TrainingState]]:
    """The states before the steps up to ``end``, the last one first, from every ``strides[0]``-th of them."""
    stride, deeper = strides[0], strides[1:]
    while stored:
        step, state = stored.pop()
        if deeper:
            segment_end = min(step + stride, end)
            yield from _states(run, _run_again(run, state, step, segment_end, deeper[0]), segment_end, deeper)
        else:
            yield step, state


def _run_again(run: _Run, state: TrainingState, step: int, end: int, stride: int) -> _Stored:
    """Every ``stride``-th state from ``step`` on, before ``end``."""
    stored = [(step, state)]
    for at in range(step, step + (end - 1 - step) // stride * stride):
        problem, controls = _placed(run, _rows(run.inputs, at, leaves=False))
        state, _, _ = inner_step(problem, state, controls, at, differentiable=False)
        if (at + 1 - step) % stride == 0:
            stored.append((at + 1, state))
    return stored


def _link(run: _Run, state: TrainingState, step: int) -> _Link:
    taken = _take(run, state, step, differentiable=True)
    return _Link(taken.leaves, taken.after, taken.loss)


def _take(run: _Run, state: TrainingState, step: int, *, differentiable: bool) -> _Taken:
    """One step, and the judgement after it: in one graph, because the sums in it then have the order of unrolling."""
    leaves = _rows(run.inputs, step, leaves=differentiable)
    problem, controls = _placed(run, leaves)
    if differentiable:
        carried = _carried(run, state)
        leaves |= carried
        state = _with(state, carried)
    loss = score = None
    with torch.set_grad_enabled(differentiable):
        after, _, gradients = inner_step(problem, state, controls, step, differentiable=differentiable)
        if step in run.judged:
            call = problem.network.call(problem.network.buffers())
            loss, score = judge(problem, run.outer, after, controls, call)
    for name, buffer in after.buffers.items():
        if buffer.requires_grad:
            raise MetaschedError(
                f"model.{name}",
                "is a buffer that the loss depends on differentiably, which the sweep would miss",
                "detach what the model writes into it, or set meta.estimator to unroll",
            )
    return _Taken(leaves if differentiable else {}, after, gradients, loss, score)


def _begin(
    problem: InnerProblem, controls: Controls, outer: OuterLoss, strides: tuple[int, ...]
) -> tuple[_Run, TrainingState]:
    hyper = {("hyper", name): v for name, v in problem.hyper.items() if isinstance(v, torch.Tensor)}
    inputs: _Named = {**{("control", name): v for name, v in controls.items()}, **hyper}
    first = _rows(inputs, 0, leaves=True)
    with torch.enable_grad():
        state = problem.initial({name: v for (part, name), v in first.items() if part == "control"})
    run = _Run(problem, outer, judged_steps(problem, outer), inputs, strides, _Link(first, state, None), [], [])
    return run, _detached(state)


def _placed(run: _Run, values: _Named) -> tuple[InnerProblem, Tensors]:
    """The problem with these hyper-parameters, and the controls, of one step."""
    hyper = {name: v for (part, name), v in values.items() if part == "hyper"}
    controls = {name: v for (part, name), v in values.items() if part == "control"}
    return replace(run.problem, hyper={**run.problem.hyper, **hyper}) if hyper else run.problem, controls


def _rows(inputs: _Named, step: int, *, leaves: bool) -> _Named:
    """What a step reads of the inputs; as leaves they require gradients where the inputs do."""
    return {
        key: _row(value, step).detach().requires_grad_(leaves and value.requires_grad) for key, value in inputs.items()
    }


def _row(value: torch.Tensor, step: int) -> torch.Tensor:
    return value[step] if value.dim() else value


def _carried(run: _Run, state: TrainingState) -> _Named:
    """New leaves for what of a state may depend on the inputs.

    The parameters, whose gradient the step itself takes, and every other floating tensor that is not still the constant
    that it was at the start.
    """
    start, carried = _named(run.start.after), {}
    for key, value in _named(state).items():
        constant = value.data_ptr() == start[key].data_ptr() and not start[key].requires_grad
        if key[0] == "params" or (value.is_floating_point() and not constant):
            carried[key] = value.detach().requires_grad_()
    return carried


def _named(state: TrainingState) -> _Named:
    return {(part, name): value for part in _PARTS for name, value in getattr(state, part).items()}


def _with(state: TrainingState, new: _Named) -> TrainingState:
    parts = {part: {name: new.get((part, name), v) for name, v in getattr(state, part).items()} for part in _PARTS}
    return state._replace(**parts)


def _detached(state: TrainingState) -> TrainingState:
    return _with(state, {key: value.detach() for key, value in _named(state).items()})


class Cost(NamedTuple):
    """Bytes of a state, of one step's graph, and of the graph of a judgement."""

    state: int
    graph: int
    judgement: int


_COSTS: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Cost]] = WeakKeyDictionary()


def cost(problem: InnerProblem, controls: Controls, outer: OuterLoss) -> Cost:
    """Measured at the second step, where all that ever carries a derivative does; once for each shape of a problem."""
    shape = (type(problem.optimizer), problem.task.batch_size, len(problem.task.validation.x), outer.objective)
    known = _COSTS.setdefault(problem.network.module, {})
    if shape not in known:
        run, state = _begin(problem, controls, outer, (1,))
        step = min(1, problem.steps - 1)
        state = _take(run, state, 0, differentiable=False).after
        existing = [v for part in state for v in part.values()] + [*problem.task.train, *problem.task.validation]

        def judged() -> object:
            leaves, call = _with(state, _carried(run, state)), problem.network.call(problem.network.buffers())
            return judge(problem, outer, leaves, _placed(run, _rows(run.inputs, step, leaves=True))[1], call)

        unjudged = replace(run, judged=range(0))
        known[shape] = Cost(
            bytes_of(v for part in state for v in part.values()),
            graph_bytes(lambda: _link(unjudged, state, step), existing),
            graph_bytes(judged, existing),
        )
    return known[shape]
