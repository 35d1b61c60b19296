"""One inner step, pure: state, controls and step number in; state and loss out.

    prepare (method state) -> forward under the controls -> gradient -> optimizer's proposal -> update (method)

Nothing depends on anything but the arguments, so that a step can be unrolled, recomputed, mapped or resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch

from metasched.network.flat import ControlRow, Tensors
from metasched.schedules.feedback import listens
from metasched.training.finite import FINITE, all_finite, each_finite
from metasched.training.loss import training_loss
from metasched.training.optimizers.base import update_stacked
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.twice import twice_differentiable


class Evaluated(NamedTuple):
    """What the forward and the backward pass of a step gave; N stacked runs have N first in each shape.

    Attributes:
        loss: 0-d, or [N]; with its graph where the step is differentiable.
        gradients: of the loss in each parameter, of its shape, as the optimizer gets them (LSQ multiplies those of
            learned scales by a factor); zeros where the loss does not depend on it.
        buffers: after the forward pass.
        method: the method's state, prepared for the step.
    """

    loss: torch.Tensor
    gradients: Tensors
    buffers: Tensors
    method: Tensors


def inner_step(
    problem: InnerProblem,
    state: TrainingState,
    row: ControlRow,
    step: int,
    *,
    differentiable: bool,
    seeds: torch.Tensor | None = None,
) -> tuple[TrainingState, torch.Tensor, Tensors]:
    """One training step: of one run, or of N runs at once whose states are stacked (see stacked.py).

    Args:
        problem: what is trained; for stacked runs a ``mappable`` one, whose own seed plays no part.
        state: before the step; of stacked runs with N first in each shape.
        row: the controls of this step, {control: [L]}, or {control: [N, L]}.
        step: t, from 0.
        differentiable: keep the graph, so that the new state can be differentiated in controls, hyper-parameters and
            the state; otherwise the new state is detached.
        seeds: of stacked runs, [N], int64 on the CPU; None: one run, from the problem's seed.

    Returns:
        the new state, the detached loss (0-d, or [N]), and the gradients of the parameters.

    Raises:
        RuntimeError: torch.vmap refuses the model or the method of stacked runs.
    """
    assert not listens(row), "whoever takes steps of a run that listens turns gains into values: see take_steps"
    state = with_leaves(state, keep_graph=differentiable)
    found = evaluate(problem, state, row, step, differentiable=differentiable, seeds=seeds)
    after = advance(problem, state, found, row, step, differentiable=differentiable, seeds=seeds)
    return after, found.loss.detach(), found.gradients


def with_leaves(state: TrainingState, *, keep_graph: bool) -> TrainingState:
    """The state with parameters that require gradients: new leaves, but for those of a graph that is kept."""
    params = {n: p if keep_graph and p.requires_grad else p.detach().requires_grad_() for n, p in state.params.items()}
    return state._replace(params=params)


def evaluate(
    problem: InnerProblem,
    state: TrainingState,
    row: ControlRow,
    step: int,
    *,
    differentiable: bool = False,
    seeds: torch.Tensor | None = None,
) -> Evaluated:
    """The first half of ``inner_step``: prepare -> loss -> gradient.

    Args:
        problem, row, step, differentiable, seeds: see ``inner_step``; ``row`` is {control: [L]} or {control: [N, L]}.
        state: before the step; all of its parameters require gradients.
    """
    params = state.params
    state = state._replace(buffers={name: b.clone() for name, b in state.buffers.items()})  # updated in place
    twice = differentiable and seeds is None
    with torch.enable_grad(), twice_differentiable(problem.network.module) if twice else nullcontext():
        if seeds is None:
            loss, method = training_loss(problem, state, row, step)
            total = loss
        else:
            loss, method = _losses(problem, state, row, step, seeds)
            total = loss.sum()  # each run has a term of its own
        found = torch.autograd.grad(total, list(params.values()), create_graph=differentiable, allow_unused=True)
    grads = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(params.items(), found, strict=True)}
    return Evaluated(loss, problem.network.gradients(grads, method), state.buffers, method)


def advance(
    problem: InnerProblem,
    state: TrainingState,
    found: Evaluated,
    row: ControlRow,
    step: int,
    *,
    differentiable: bool = False,
    seeds: torch.Tensor | None = None,
    loss_at: Callable[[Tensors], torch.Tensor] | None = None,
) -> TrainingState:
    """The second half of ``inner_step``: the optimizer's proposal -> what the method makes of it -> health.

    Args:
        problem, state, row, step, differentiable, seeds: as they were given to ``evaluate``.
        found: what that gave.
        loss_at: the loss of this step's batch at other parameters, 0-d, for methods that evaluate it; None: that of
            the problem.

    Raises:
        MetaschedError: stacked runs of a method that evaluates the loss.
    """
    params, hyper = state.params, problem.hyper_at(step)

    @torch.no_grad()
    def own_loss_at(params: Tensors) -> torch.Tensor:
        here = state._replace(params=params, buffers={name: b.clone() for name, b in state.buffers.items()})
        return training_loss(problem, here, row, step)[0]

    with torch.set_grad_enabled(differentiable):
        if seeds is None:
            proposed, optimizer = problem.optimizer.update(params, found.gradients, state.optimizer, hyper)
            settled, method = problem.network.update(
                params, proposed, found.method, row, problem.seed, step, loss_at or own_loss_at
            )
        else:
            proposed, optimizer = update_stacked(problem.optimizer, params, found.gradients, state.optimizer, hyper)
            settled, method = _settled(problem, params, proposed, found.method, row, step, seeds)
    if not differentiable:
        settled, method = ({name: t.detach() for name, t in part.items()} for part in (settled, method))
    health = health_after(state, [found.loss, *row.values(), *proposed.values(), *optimizer.values()], seeds)
    return TrainingState(settled, found.buffers, optimizer, method, health)


def health_after(state: TrainingState, numbers: Iterable[torch.Tensor], seeds: torch.Tensor | None = None) -> Tensors:
    """The health after a step that read and made these numbers: {FINITE: bool, 0-d}, or [N] of stacked runs."""
    finite = all_finite(numbers) if seeds is None else each_finite(numbers)
    return {FINITE: state.health[FINITE] & finite}


def _losses(
    problem: InnerProblem, state: TrainingState, row: ControlRow, step: int, seeds: torch.Tensor
) -> tuple[torch.Tensor, Tensors]:
    """``training_loss`` of each stacked run: [N], and the method's states."""

    def of_run(
        params: Tensors, buffers: Tensors, method: Tensors, row: ControlRow, seed: torch.Tensor
    ) -> tuple[torch.Tensor, Tensors]:
        own = TrainingState(params, buffers, {}, method, {})
        return training_loss(replace(problem, seed=seed), own, row, step)

    return torch.vmap(of_run)(state.params, state.buffers, state.method, row, seeds)


def _settled(
    problem: InnerProblem,
    params: Tensors,
    proposed: Tensors,
    method: Tensors,
    row: ControlRow,
    step: int,
    seeds: torch.Tensor,
) -> tuple[Tensors, Tensors]:
    """``QuantizedNetwork.update`` of each stacked run."""

    def of_run(
        params: Tensors, proposed: Tensors, method: Tensors, row: ControlRow, seed: torch.Tensor
    ) -> tuple[Tensors, Tensors]:
        return problem.network.update(params, proposed, method, row, seed, step)  # pyright: ignore[reportArgumentType]

    return torch.vmap(of_run)(params, proposed, method, row, seeds)
