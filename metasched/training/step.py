"""One inner step, pure: state, controls and step number in; state and loss out.

    prepare (method state) -> forward under the controls -> gradient -> optimizer's proposal -> update (method)

Nothing depends on anything but the arguments, so that a step can be unrolled, recomputed, mapped or resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map

from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.network.quantize import Call, ControlRow, QuantizedNetwork, Tensors
from metasched.tasks.base import Task, start
from metasched.training.finite import FINITE, all_finite, each_finite
from metasched.training.optimizers.base import Hyper, Optimizer, update_stacked


class TrainingState(NamedTuple):
    """All that training carries from step to step: flat dicts of tensors.

    ``health`` says whether all numbers so far were finite (see finite.py).
    """

    params: Tensors
    buffers: Tensors
    optimizer: Tensors
    method: Tensors
    health: Tensors


@dataclass(frozen=True)
class InnerProblem:
    """What an inner run trains, from which seed, for how long.

    Attributes:
        network: the quantized network.
        task: data, loss and batches.
        optimizer: the inner optimizer.
        hyper: its hyper-parameters: name -> a number for all steps, or T of them (a tuple, or a [T] tensor that may
            require gradients).
        steps: T.
        seed: of initial weights, batches and draws.
        autocast: run the module in bfloat16 where torch.autocast does (see ``precise``).
        fingerprint: of the task and of what made it.
    """

    network: QuantizedNetwork
    task: Task
    optimizer: Optimizer
    hyper: Mapping[str, float | tuple[float, ...] | torch.Tensor]
    steps: int
    seed: int
    autocast: bool = False
    fingerprint: str = ""

    def hyper_at(self, step: int) -> Hyper:
        """The optimizer's hyper-parameters at a step."""
        now: dict[str, float | torch.Tensor] = {}
        for name, value in self.hyper.items():
            if isinstance(value, tuple):
                now[name] = value[step]
            elif isinstance(value, torch.Tensor):
                now[name] = value[step] if value.dim() else value
            else:
                now[name] = value
        return now

    def initial(self, first: ControlRow) -> TrainingState:
        """The state before the first step; the initial weights are a function of the seed and of ``first``.

        Args:
            first: the controls of the first step, {control: [L]}.

        Raises:
            MetaschedError: controls that have not one value for each layer.
        """
        for name, values in first.items():
            if values.shape[-1:] != (len(self.network.layers),):
                what = f"is for {values.shape[-1] if values.dim() else 'no'} layers, and the network has"
                fix = "play a schedule that was made for this network, or one that follows relative depth"
                raise MetaschedError(f"control {name}", f"{what} {len(self.network.layers)} of them", fix)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "weights"))
            fresh = start(self.task)
        module = self.network.module
        like = {name: p for name, p in module.named_parameters()}
        own = {name: p.detach().to(like[name]) for name, p in fresh.named_parameters()}
        params, method = self.network.initialize(own, first, self.seed)
        health = {FINITE: all_finite(params.values())}
        return TrainingState(params, self.network.buffers(), self.optimizer.init(params), method, health)

    def with_seed(self, seed: int) -> InnerProblem:
        """The same problem from another seed."""
        return replace(self, seed=seed)


@contextmanager
def own_draws(problem: InnerProblem, step: int) -> Iterator[None]:
    """Within: draws from torch's global generator (dropout, augmentation) are a function of the seed and the step."""
    if not (problem.network.draws or problem.task.draws):
        yield
        return
    device = next(problem.network.module.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(problem.seed, "forward", step))
        yield


def precise(problem: InnerProblem, call: Call) -> Call:
    """``call(params, ...)`` in the problem's precision; inputs, parameters and outputs have the problem's dtype.

    Under autocast products are computed in bfloat16, which has 8 bits: quantized values -1, 0 and 1 are exact in it,
    and so are powers of two as scales; other scales are rounded, by up to 2^-8 of their size.
    """
    if not problem.autocast:
        return call

    def cast(params: Tensors, *args: Any, **kwargs: Any) -> Any:
        like = next(iter(params.values()))
        # each weight is used once a pass: a cache of casts would save nothing
        with torch.autocast(like.device.type, torch.bfloat16, cache_enabled=False):
            outputs = call(params, *args, **kwargs)
            return tree_map(lambda y: y.to(like.dtype) if _floating(y) else y, outputs)

    return cast


def _floating(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def training_loss(
    problem: InnerProblem,
    state: TrainingState,
    controls: ControlRow,
    step: int,
    call: Call | None = None,
) -> tuple[torch.Tensor, Tensors]:
    """The loss, 0-d, that the optimizer sees at this step (penalty included), and the method state prepared for it.

    ``controls`` are those of the step, {control: [L]}.

    ``call(params, ...)`` runs the module; default: torch.func.functional_call with the state's buffers, which batch
    normalization updates in place.
    """
    network = problem.network
    method = network.prepare(state.params, state.method, controls, problem.seed, step)
    run = precise(problem, call or network.call(state.buffers))
    with own_draws(problem, step):
        batch = problem.task.placed(problem.task.batch(problem.seed, step))
        model, penalty = network.model(run, state.params, method, controls, problem.seed, step)
        loss = problem.task.loss(model, batch)
    return (loss if penalty is None else loss + penalty), method


class Evaluated(NamedTuple):
    """What the forward and the backward pass of a step gave; N stacked runs have N first in each shape.

    Attributes:
        loss: 0-d, or [N]; with its graph where the step is differentiable.
        gradients: of the loss in each parameter, of its shape; zeros where the loss does not depend on it.
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
    with torch.enable_grad():
        if seeds is None:
            loss, method = training_loss(problem, state, row, step)
            total = loss
        else:
            loss, method = _losses(problem, state, row, step, seeds)
            total = loss.sum()  # each run has a term of its own
        found = torch.autograd.grad(total, list(params.values()), create_graph=differentiable, allow_unused=True)
    grads = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(params.items(), found, strict=True)}
    return Evaluated(loss, grads, state.buffers, method)


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
