"""Unrolling with ``higher``: its patched module runs the forward passes, its optimizer interface takes the steps.

Exact, with the optimizers of ``higher_optimizers``; memory grows with T times the activations of a step. What
``higher`` would get wrong is refused before the first step.
"""

from __future__ import annotations

from typing import Any

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
from metasched.engines.higher_optimizers import OfRule, monkeypatch, refuse
from metasched.network.flat import Tensors, rows
from metasched.training.loss import training_loss
from metasched.training.state import InnerProblem
from metasched.training.step import health_after, with_leaves


def unroll(problem: InnerProblem, controls: Controls, outer: OuterLoss) -> Unrolled:
    """Train under the controls ({control: [T, L]}) and keep the graph from the outer loss back to them.

    Raises:
        MetaschedError: hooks that ``higher`` would get wrong.
    """
    network = problem.network
    own = [name for name, _ in network.module.named_parameters()]
    refuse(network.module, torch.optim.SGD(network.module.parameters(), lr=0.0))
    fmodel = monkeypatch(network.module, copy_initial_weights=True, track_higher_grads=True)
    fmodel.train()

    def call(params: Tensors, *args: Any, **kwargs: Any) -> Any:
        return fmodel(*args, params=[params[name] for name in own], **kwargs)

    state = with_leaves(problem.initial(rows(controls, 0)), keep_graph=True)
    params = state.params
    names = [*own, *network.trainable(params)]
    slots = [*network.module.parameters(), *(nn.Parameter(params[name].detach()) for name in names[len(own) :])]
    diffopt = OfRule(problem.optimizer, zip(names, slots, strict=True))
    losses, scores, dead = [], [], 0
    for step in range(problem.steps):
        row = rows(controls, step)
        state = state._replace(params=params)
        loss, method = training_loss(problem, state, row, step, call)
        seen: Tensors = {}

        def scaled(gradients: list[torch.Tensor], seen: Tensors = seen, method: Tensors = method) -> list[torch.Tensor]:
            seen.update(network.gradients(dict(zip(names, gradients, strict=True)), method))
            return [seen[name] for name in names]

        proposed = diffopt.step(
            loss,
            params=[params[name] for name in names],
            override={name: [value] for name, value in problem.hyper_at(step).items()},
            grad_callback=scaled,
        )
        dead += dead_layers(problem, seen)
        params, method = network.update(
            params, dict(zip(names, proposed, strict=True)), method, row, problem.seed, step
        )
        health = health_after(state, [loss, *row.values(), *proposed, *diffopt.carried()])
        state = state._replace(params=params, method=method, health=health)
        if step in judged_steps(problem, outer):
            outer_loss, score = judge(problem, outer, state, row, call)
            losses.append(outer_loss)
            scores.append(score)
    pairs = problem.steps * len(network.layers)
    return Unrolled(torch.stack(losses).mean(), torch.stack(scores).mean(), dead / pairs)


def estimate(schedule: nn.Module, problem: InnerProblem, outer: OuterLoss) -> Hypergradient:
    """The exact hypergradient by unrolling with ``higher``."""
    return estimate_by(unroll, schedule, problem, outer)
