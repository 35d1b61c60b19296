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

from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves

from metasched.engines.base import (
    Controls,
    Hypergradient,
    OuterLoss,
    Unrolled,
    estimate_by,
    judged_steps,
)
from metasched.engines.memory import Plan, bytes_of, graph_bytes, keep_freed_memory, plan
from metasched.engines.products import vector_jacobian
from metasched.engines.replay import (
    Link,
    Named,
    Recording,
    Single,
    Steps,
    at_step,
    begin,
    detached,
    link,
    links,
    named,
    take,
)
from metasched.training.state import InnerProblem


def unroll(
    problem: InnerProblem,
    controls: Controls,
    outer: OuterLoss,
    memory: int | None = None,
    plan: Plan | None = None,
    steps: Steps | None = None,
) -> Unrolled:
    """Train under the controls, ready to sweep back, once, from the outer loss to them.

    Args:
        problem: what is trained; tensors in its hyper-parameters that require gradients get one.
        controls: {control: [T, L]}, of N stacked runs {control: [T, N, L]}; those that require gradients get one.
        outer: what is judged.
        memory: bytes that the sweep may take; None is economical (see ``memory.plan``).
        plan: which states are stored and which graphs kept; None: what ``memory`` allows.
        steps: how a run is begun and judged, or N stacked ones; None: one run, from the problem's seed.

    Raises:
        MetaschedError: too little memory for a single step, or a model whose buffers carry a derivative.
    """
    keep_freed_memory()
    plan = plan or plan_for(problem, controls, outer, memory)
    recording, state = begin(problem, controls, outer, plan.strides, steps or Single())
    losses, scores, dead = [], [], 0
    for step in range(problem.steps):
        keeps = step >= problem.steps - plan.kept
        if not keeps and step % plan.strides[0] == 0:
            recording.stored.append((step, state))
        taken = take(recording, state, step, differentiable=keeps)
        state = detached(taken.after)
        dead += recording.steps.dead_layers(problem, taken.gradients)
        if taken.loss is not None and taken.score is not None:
            losses.append(taken.loss.detach())
            scores.append(taken.score)
        if keeps:
            recording.kept.append(Link(taken.leaves, taken.after, taken.loss))
    loss = _Sweep.apply(torch.stack(losses).mean(0), recording, *recording.inputs.values())
    return Unrolled(loss, torch.stack(scores).mean(0), dead / (problem.steps * len(problem.network.layers)))


def estimate(schedule: nn.Module, problem: InnerProblem, outer: OuterLoss) -> Hypergradient:
    """The exact hypergradient by an economical sweep."""
    return estimate_by(unroll, schedule, problem, outer)


def plan_for(problem: InnerProblem, controls: Controls, outer: OuterLoss, memory: int | None) -> Plan:
    """The plan of ``unroll``: where several steps are judged each has a judgement in its graph, otherwise the last.

    Args:
        problem, outer: what is trained, and how it is judged.
        controls: {control: [T, L]}.
        memory: bytes that the sweep may take; None is economical.

    Raises:
        MetaschedError: less memory than a single step needs.
    """
    state, graph, judgement = cost(problem, controls, outer)
    if len(judged_steps(problem, outer)) > 1:
        return plan(problem.steps, state, graph + judgement, memory)
    return plan(problem.steps, state, graph, None if memory is None else memory - judgement)


class _Sweep(torch.autograd.Function):
    """The loss of a run as a function of its inputs."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, recording: Recording, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.recording = recording
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, seed: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        recording, ctx.recording = ctx.recording, None
        assert recording is not None, "the way back is free for one sweep only: unroll again"
        return None, None, *_sweep_back(recording, seed)


def _sweep_back(recording: Recording, seed: torch.Tensor) -> list[torch.Tensor | None]:
    """The derivative in each input, for the derivative ``seed`` in the loss."""
    wrt = {key: torch.zeros_like(value) for key, value in recording.inputs.items() if value.requires_grad}
    seed = seed / len(recording.judged)
    adjoint: Named = {}
    for step, taken in links(recording):
        adjoint = _pull(taken, adjoint, seed, wrt, step)
        del taken  # before the next one is made
    _pull(recording.start, adjoint, seed, wrt, 0)
    return [wrt.get(key) for key in recording.inputs]


def _pull(taken: Link, adjoint: Named, seed: torch.Tensor, wrt: Named, step: int) -> Named:
    """The adjoint of the state before a step from that after it; what falls to the inputs is added to ``wrt``."""
    after = named(taken.after)
    ends = [(after[key], a) for key, a in adjoint.items() if after[key].requires_grad]
    if taken.loss is not None and taken.loss.requires_grad:
        ends.append((taken.loss, seed))
    leaves = {key: leaf for key, leaf in taken.leaves.items() if leaf.requires_grad}
    if not ends or not leaves:
        return {}
    outputs, seeds = zip(*ends, strict=True)
    found = vector_jacobian(outputs, list(leaves.values()), seeds)
    slopes = {key: slope for key, slope in zip(leaves, found, strict=True) if slope is not None}
    for key in slopes.keys() & wrt.keys():
        at_step(wrt[key], step).add_(slopes[key])
    return {key: slope for key, slope in slopes.items() if key not in wrt}


class Cost(NamedTuple):
    """Bytes of a state, of one step's graph, and of what a judgement adds to it."""

    state: int
    graph: int
    judgement: int


_COSTS: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Cost]] = WeakKeyDictionary()


def cost(problem: InnerProblem, controls: Controls, outer: OuterLoss) -> Cost:
    """Measured at the second step, where all that ever carries a derivative does; once for each shape of a problem.

    ``controls`` are {control: [T, L]}.
    """
    batches = [tree_leaves(problem.task.batch(problem.seed, 0)), tree_leaves(problem.task.outer_batch())]
    sizes = tuple(t.shape for part in batches for t in part if isinstance(t, torch.Tensor))
    shape = (problem.optimizer, sizes, outer.objective)
    known = _COSTS.setdefault(problem.network.module, {})
    if shape not in known:
        recording, state = begin(problem, controls, outer, (1,), Single())
        step = min(1, problem.steps - 1)
        state = take(replace(recording, judged=range(0)), state, 0, differentiable=False).after
        existing = [v for part in state for v in part.values()] + [t for t in batches[1] if isinstance(t, torch.Tensor)]

        def graph(judged: range) -> int:
            return graph_bytes(lambda: link(replace(recording, judged=judged), state, step), existing)

        state_bytes, alone = bytes_of(v for part in state for v in part.values()), graph(range(0))
        known[shape] = Cost(state_bytes, alone, graph(range(step, step + 1)) - alone)
    return known[shape]
