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
from metasched.network.flat import rows
from metasched.training.loop import take_steps
from metasched.training.state import InnerProblem, TrainingState


def unroll(
    problem: InnerProblem,
    controls: Controls,
    outer: OuterLoss,
    since: TrainingState | None = None,
    window: range | None = None,
) -> Unrolled:
    """Train under the controls and keep the graph from the outer loss back to them.

    Args:
        problem: what is trained.
        controls: of the steps, {control: [steps, L]}.
        outer: how the run is judged.
        since: the state before the first step, whose own past is done as given; None: the initial one.
        window: the steps, of which the last one is judged; None: all, judged as ``outer`` says.
    """
    steps = window or range(problem.steps)
    judged = steps[-1:] if window else judged_steps(problem, outer)
    state = since or problem.initial(rows(controls, 0))
    losses, scores, dead = [], [], 0
    for done in take_steps(problem, state, controls, steps, differentiable=True):
        dead += dead_layers(problem, done.gradients)
        if done.step in judged:
            call = problem.network.call(problem.network.buffers())
            loss, score = judge(problem, outer, done.state, done.row, call)
            losses.append(loss)
            scores.append(score)
    pairs = len(steps) * len(problem.network.layers)
    return Unrolled(torch.stack(losses).mean(), torch.stack(scores).mean(), dead / pairs)


def estimate(schedule: nn.Module, problem: InnerProblem, outer: OuterLoss) -> Hypergradient:
    """The exact hypergradient by plain unrolling."""
    return estimate_by(unroll, schedule, problem, outer)
