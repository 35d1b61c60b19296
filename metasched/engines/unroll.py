"""Plain unrolling: T differentiable steps with torch.func.functional_call and create_graph, all kept in one graph.

Exact. Memory grows with T times the activations of a step. The twin of ``higher_unroll``: same numbers, no ``higher``.
"""

from __future__ import annotations

import torch
from torch import nn

from metasched.engines.base import (
    Controls,
    Hypergradient,
    OuterLoss,
    Unrolled,
    dead_layers,
    estimate_by,
    judge,
    judged_steps,
)
from metasched.network.quantize import rows
from metasched.training.step import InnerProblem, inner_step


def unroll(problem: InnerProblem, controls: Controls, outer: OuterLoss) -> Unrolled:
    """Train under the controls ({control: [T, L]}) and keep the graph from the outer loss back to them."""
    state = problem.initial(rows(controls, 0))
    state = state._replace(params={k: p if p.requires_grad else p.requires_grad_() for k, p in state.params.items()})
    losses, scores, dead = [], [], 0
    for step in range(problem.steps):
        now = rows(controls, step)
        state, _, gradients = inner_step(problem, state, now, step, differentiable=True)
        dead += dead_layers(problem, gradients)
        if step in judged_steps(problem, outer):
            loss, score = judge(problem, outer, state, now, problem.network.call(problem.network.buffers()))
            losses.append(loss)
            scores.append(score)
    pairs = problem.steps * len(problem.network.layers)
    return Unrolled(torch.stack(losses).mean(), torch.stack(scores).mean(), dead / pairs)


def estimate(schedule: nn.Module, problem: InnerProblem, outer: OuterLoss) -> Hypergradient:
    """The exact hypergradient by plain unrolling."""
    return estimate_by(unroll, schedule, problem, outer)
