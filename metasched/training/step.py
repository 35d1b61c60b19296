"""One inner step, pure: state, controls and step number in; state and loss out.

    prepare (method state) -> forward under the controls -> gradient -> optimizer's proposal -> update (method)

Nothing depends on anything but the arguments, so that a step can be unrolled, recomputed, mapped or resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map

from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.network.quantize import Call, ControlRows, QuantizedNetwork, Tensors
from metasched.tasks.base import Task, start
from metasched.training.finite import FINITE, all_finite
from metasched.training.optimizers import Hyper, Optimizer


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

    def initial(self, first: ControlRows) -> TrainingState:
        """The state before the first step; the initial weights are a function of the seed and of the first controls.

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
    controls: ControlRows,
    step: int,
    call: Call | None = None,
) -> tuple[torch.Tensor, Tensors]:
    """The loss that the optimizer sees at this step (penalty included), and the method state prepared for it.

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


def inner_step(
    problem: InnerProblem, state: TrainingState, controls: ControlRows, step: int, *, differentiable: bool
) -> tuple[TrainingState, torch.Tensor, Tensors]:
    """One training step.

    Args:
        differentiable: keep the graph, so that the new state can be differentiated in controls and hyper-parameters;
            parameters of the state must then require gradients. Otherwise the new state is detached.

    Returns:
        the new state, the detached loss, and the gradients of the parameters.
    """
    params = state.params if differentiable else {k: p.detach().requires_grad_() for k, p in state.params.items()}
    before, buffers = state.buffers, {name: b.clone() for name, b in state.buffers.items()}
    state = state._replace(params=params, buffers=buffers)
    with torch.enable_grad():
        loss, method = training_loss(problem, state, controls, step)
        names = list(params)
        found = torch.autograd.grad(loss, [params[n] for n in names], create_graph=differentiable, allow_unused=True)
    grads = {n: torch.zeros_like(params[n]) if g is None else g for n, g in zip(names, found, strict=True)}
    with torch.set_grad_enabled(differentiable):
        proposed, optimizer = problem.optimizer.update(params, grads, state.optimizer, problem.hyper_at(step))

        @torch.no_grad()
        def loss_at(params: Tensors) -> torch.Tensor:
            here = state._replace(params=params, buffers={name: b.clone() for name, b in before.items()})
            return training_loss(problem, here, controls, step)[0]

        settled, method = problem.network.update(params, proposed, method, controls, problem.seed, step, loss_at)
    if not differentiable:
        settled = {k: p.detach() for k, p in settled.items()}
        method = {k: v.detach() for k, v in method.items()}
    finite = all_finite([loss, *controls.values(), *proposed.values(), *optimizer.values()])
    health = {FINITE: state.health[FINITE] & finite}
    return TrainingState(settled, buffers, optimizer, method, health), loss.detach(), grads
