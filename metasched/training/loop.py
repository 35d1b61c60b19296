"""A whole inner run, and the evaluation of the network that it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.network.flat import Model, Tensors, rows
from metasched.tasks.base import Part
from metasched.training.feedback import controller_of
from metasched.training.state import InnerProblem, TrainingState, own_draws
from metasched.training.step import inner_step


class InnerRun(NamedTuple):
    """The outcome of a run.

    Attributes:
        state: after the last step.
        losses: [T] training loss of each step.
    """

    state: TrainingState
    losses: torch.Tensor


class Stepped(NamedTuple):
    """A step that was done.

    Attributes:
        step: t.
        state: after it.
        loss: detached, 0-d, or [N] of stacked runs.
        gradients: of the parameters.
        row: the controls of the step, {control: [L]} or {control: [N, L]}.
    """

    step: int
    state: TrainingState
    loss: torch.Tensor
    gradients: Tensors
    row: Tensors


def take_steps(
    problem: InnerProblem,
    state: TrainingState,
    controls: Mapping[str, torch.Tensor],
    steps: range,
    *,
    differentiable: bool = False,
    seeds: torch.Tensor | None = None,
) -> Iterator[Stepped]:
    """Take steps one after the other, from the state before the first of them.

    Args:
        problem, state, differentiable, seeds: see ``inner_step``.
        controls: of these S steps, {control: [S, L]}, and the gains of a closed-loop schedule; of N stacked runs
            {control: [S, N, L]}, without gains.
        steps: which they are.
    """
    controller = controller_of(problem.network, controls, problem.steps)
    assert controller is None or (seeds is None and not differentiable), "closed-loop runs are plain and single"
    for i, step in enumerate(steps):
        row, before = rows(controls, i), state
        row = controller.row(row, before.measured) if controller else row
        state, loss, gradients = inner_step(problem, state, row, step, differentiable=differentiable, seeds=seeds)
        if controller:
            now = controller.after(before.measured, row, loss, before.params, state.params, state.method)
            state = state._replace(measured=now)
        yield Stepped(step, state, loss, gradients, row)


def train(problem: InnerProblem, controls: Mapping[str, torch.Tensor]) -> InnerRun:
    """Train for T steps under the controls ({control: [T, L]}), without a graph."""
    state = problem.initial(rows(controls, 0))
    losses = []
    for done in take_steps(problem, state, controls, range(problem.steps)):
        state = done.state
        losses.append(done.loss)
    return InnerRun(state, torch.stack(losses))


def harden(problem: InnerProblem, state: TrainingState) -> tuple[Tensors, Tensors]:
    """Parameters and buffers of the deployed network.

    Weights are hard; the statistics of batch normalization are estimated anew for the hard network, over the training
    data that the task goes through, because the running ones were gathered while the network was still soft.
    """
    network = problem.network
    with torch.no_grad(), own_draws(problem, problem.steps):
        hardened = network.harden(state.params, state.method)
        buffers = {name: b.clone() for name, b in state.buffers.items()}
        with _reestimating(network.module, buffers):
            model = network.hardened_model(network.call(buffers), state.params, state.method)
            if buffers:  # without any there is nothing to estimate
                problem.task.calibrate(_placing(problem, model))
    return hardened, buffers


def hardened_score(problem: InnerProblem, state: TrainingState, part: Part) -> float:
    """Score of the deployed network (see ``harden``, activations hard as well) on the validation or the test part.

    Raises:
        MetaschedError: it is not a number.
    """
    network = problem.network
    _, buffers = harden(problem, state)
    model = network.hardened_model(network.call(buffers), state.params, state.method)
    network.module.eval()
    try:
        return score_of(problem, model, part)
    finally:
        network.module.train()


def score_of(problem: InnerProblem, model: Model, part: Part) -> float:
    """Score of a network in eval mode on the validation or the test part of a problem's task.

    Raises:
        MetaschedError: it is not a number.
    """
    with torch.no_grad(), own_draws(problem, problem.steps):
        return checked_score(problem.task.score(_placing(problem, model), part))


def checked_score(score: object) -> float:
    """A score as a number; NaN where the network puts out none.

    Raises:
        MetaschedError: it is none.
    """
    try:
        number = float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise MetaschedError(
            "task.score", f"gives a {type(score).__name__}, no number", "let it return a float"
        ) from None
    return number


def _placing(problem: InnerProblem, model: Model) -> Model:
    """The network with the tensors that it gets put where it is."""
    placed = problem.task.placed
    return lambda *args, **kwargs: model(*placed(args), **placed(kwargs))


@contextmanager
def _reestimating(module: nn.Module, buffers: Tensors) -> Iterator[None]:
    """Within: batch normalization gathers plain averages over what it sees, from nothing, into these buffers."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for name, b in buffers.items():
        if name.endswith(("running_mean", "num_batches_tracked")):
            b.zero_()
        elif name.endswith("running_var"):
            b.fill_(1)
    for m in norms:
        m.momentum = None
    try:
        yield
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
