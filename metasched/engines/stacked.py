"""The adjoint sweep of many inner runs at once: the steps of N runs are steps of one stacked run.

    (a_t[i], dL_i/dc_t[i]) = (a_{t+1}[i], dL_i/dl_t[i])^T  d(s_{t+1}[i], l_t[i]) / d(s_t[i], c_t[i]),   i = 1 ... N

Each run has controls, a seed and an outer loss of its own, so one sweep back from the sum of the losses gives the
derivative of each. Forward passes are mapped by torch.vmap (training/stacked.py); memory is that of N runs. The numbers
are those of the sweep of each run up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from metasched.engines.base import (
    ControlGradient,
    Controls,
    OuterLoss,
    check_open_loop,
    gradient_record,
    judged_model,
)
from metasched.engines.sweep import plan_for, unroll
from metasched.network.flat import Tensors
from metasched.tasks.supervised import SupervisedTask
from metasched.training.finite import FINITE
from metasched.training.stacked import mappable, stacked
from metasched.training.state import InnerProblem, TrainingState, own_draws


@dataclass(frozen=True)
class Stack:
    """How N runs of one problem are begun and judged (see ``replay.Steps``); controls of a step are [N, L].

    Attributes:
        seeds: [N], int64 on the CPU.
    """

    seeds: torch.Tensor

    def initial(self, problem: InnerProblem, first: Tensors) -> TrainingState:
        """The stacked states before the first step; ``first`` are its controls, {control: [N, L]}."""
        each = [{name: v[i] for name, v in first.items()} for i in range(len(self.seeds))]
        seeds = self.seeds.tolist()
        return stacked(problem, [problem.with_seed(s).initial(f) for s, f in zip(seeds, each, strict=True)])

    def judge(
        self, problem: InnerProblem, outer: OuterLoss, state: TrainingState, row: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``judge_mapped``."""
        return judge_mapped(problem, outer, state, row, self.seeds)

    def dead_layers(self, problem: InnerProblem, gradients: Tensors) -> torch.Tensor:
        """How many quantized layers of each run have a weight gradient that is zero everywhere, [N]."""
        weights = (gradients[layer.weight_key].detach() for layer in problem.network.layers)
        return torch.stack([~w.flatten(1).any(1) for w in weights]).sum(0)


def control_gradients_mapped(
    problem: InnerProblem,
    controls: Sequence[Controls],
    seeds: Sequence[int],
    outer: OuterLoss,
    memory: int | None = None,
) -> list[ControlGradient]:
    """``control_gradient`` of N runs by one sweep.

    Args:
        problem: what all runs train; its own seed plays no part.
        controls: of each run, {control: [T, L]}.
        seeds: N of them.
        outer: how they are judged.
        memory: bytes that each run may take; None is economical.

    Raises:
        MetaschedError: see ``sweep.unroll``; controls with gains.
        RuntimeError: torch.vmap refuses the model or the method.
    """
    for own in controls:
        check_open_loop(own)
    start = time.perf_counter()
    like = next(problem.network.module.parameters())
    plan = plan_for(problem.with_seed(seeds[0]), controls[0], outer, memory)
    leaves = {
        name: torch.stack([c[name].detach().to(like) for c in controls], 1).requires_grad_() for name in controls[0]
    }
    problem = mappable(problem)
    result = unroll(problem, leaves, outer, plan=plan, steps=Stack(torch.tensor(seeds, dtype=torch.int64)))
    found = torch.autograd.grad(result.loss.sum(), list(leaves.values()), allow_unused=True)
    wrt = {n: torch.zeros_like(c) if g is None else g for (n, c), g in zip(leaves.items(), found, strict=True)}
    seconds = (time.perf_counter() - start) / len(seeds)
    ends = zip(result.loss.detach(), result.score, torch.as_tensor(result.dead_layers).tolist(), strict=True)
    return [
        gradient_record(problem, loss, score, {name: slope[:, i] for name, slope in wrt.items()}, dead, seconds)
        for i, (loss, score, dead) in enumerate(ends)
    ]


def judge_mapped(
    problem: InnerProblem, outer: OuterLoss, state: TrainingState, row: Tensors, seeds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and scores [N] of a stacked state; ``row`` are the controls of the last step, {control: [N, L]}."""
    # mapped over runs, a mean sums in another order: losses are taken of each run's outputs by themselves
    task = problem.task
    assert isinstance(task, SupervisedTask), "others are not mapped (see Task.maps)"
    x, y = task.validation
    buffers = {name: b.expand(len(seeds), *b.shape).clone() for name, b in problem.network.buffers().items()}

    def outputs_of(
        params: Tensors, buffers: Tensors, method: Tensors, row: Tensors, seed: torch.Tensor
    ) -> torch.Tensor:
        run = replace(problem, seed=seed)
        ended = TrainingState(params, buffers, {}, method, {})
        with own_draws(run, run.steps):
            return judged_model(run, outer, ended, row, run.network.call(buffers))(x)

    outputs = torch.vmap(outputs_of)(state.params, buffers, state.method, row, seeds)
    losses = torch.stack([task.criterion(own, y) for own in outputs])
    scores = torch.stack([task.metric(own.detach(), y) for own in outputs])
    return torch.where(state.health[FINITE], losses, torch.nan), scores
