"""What every estimator takes and gives: a schedule and an inner problem in, a hypergradient with diagnostics out."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.engines.products import vector_jacobian
from metasched.network.flat import Call, Model, Tensors
from metasched.schedules.base import progress_of_steps
from metasched.schedules.feedback import is_closed_loop
from metasched.training.faults import Fault
from metasched.training.finite import FINITE
from metasched.training.loss import precise
from metasched.training.state import InnerProblem, TrainingState, own_draws

Controls = Mapping[str, torch.Tensor]  # control -> [T, L]
Objective = Literal["hardened", "relaxed", "trajectory"]


class OuterLoss(NamedTuple):
    """How the end of an inner run is judged, on the meta-validation split.

    Attributes:
        objective: ``hardened``: the deployed network after the last step; ``relaxed``: the network as it was trained
            at the last step; ``trajectory``: the mean of the hardened loss after each of the last fifth of the steps.
        surrogate: half-width in quanta of the surrogate derivative of the hardened network, whose own is zero.
    """

    objective: Objective = "hardened"
    surrogate: float = 0.5


class Unrolled(NamedTuple):
    """An inner run with its graph: outer loss and score, and the share of dead (step, layer) pairs.

    0-d and a number, or [N] where N runs are stacked.
    """

    loss: torch.Tensor
    score: torch.Tensor
    dead_layers: float | torch.Tensor


Unroll = Callable[[InnerProblem, Controls, OuterLoss], Unrolled]


class ControlGradient(NamedTuple):
    """The derivative of one inner run's outer loss in the value of each control at each step and layer.

    Attributes:
        loss, score: of the judged network on the meta-validation split.
        wrt: {control: [T, L]}.
        nonfinite: number of values of loss and derivative that are not finite.
        dead_layers: share of (step, layer) pairs in which no gradient reached the layer's weights.
        seconds: wall time.
        faults: where they come from.
    """

    loss: float
    score: float
    wrt: Tensors
    nonfinite: int
    dead_layers: float
    seconds: float
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Diagnostics:
    """What to look at before a hypergradient is trusted.

    Attributes:
        gradient_norm: Euclidean norm over all schedule parameters.
        nonfinite: number of values of the loss and the derivative that are not finite.
        dead_layers: share of (step, layer) pairs in which no gradient reached the layer's weights.
        seconds: wall time of the estimate.
        peak_bytes: largest resident memory of the process so far, as the system reports it.
        score: score of the judged network on the meta-validation split.
        faults: where numbers first were not finite; of a population also those of runs that are left out of it.
    """

    gradient_norm: float
    nonfinite: int
    dead_layers: float
    seconds: float
    peak_bytes: int
    score: float
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Hypergradient:
    """An estimate of d(outer loss)/d(schedule parameters).

    Attributes:
        loss: the outer loss.
        gradient: one tensor for each parameter of the schedule, in the order of ``schedule.parameters()``.
        diagnostics: see there.
    """

    loss: float
    gradient: list[torch.Tensor]
    diagnostics: Diagnostics


def judge(
    problem: InnerProblem,
    outer: OuterLoss,
    state: TrainingState,
    controls: Tensors,
    call: Call,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outer loss and score of a state on the meta-validation split; ``controls`` are those of the last step, [L] each.

    The loss of a run in which anything was not finite is NaN, even where its network would have one. Batch
    normalization uses the statistics of the split itself: running statistics carry no gradient, and would bias the
    loss.
    """
    task = problem.task
    with own_draws(problem, problem.steps):
        loss, score = task.judge(judged_model(problem, outer, state, controls, call), task.placed(task.outer_batch()))
    return torch.where(state.health[FINITE], loss, torch.nan), score


def judged_model(problem: InnerProblem, outer: OuterLoss, state: TrainingState, controls: Tensors, call: Call) -> Model:
    """The network of a state that the outer loss judges; ``controls`` are those of the last step, [L] each."""
    network, call = problem.network, precise(problem, call)
    if outer.objective == "relaxed":
        return network.model(call, state.params, state.method, controls, problem.seed, problem.steps)[0]
    return network.hardened_model(call, state.params, state.method, outer.surrogate)


def judged_steps(problem: InnerProblem, outer: OuterLoss) -> range:
    """The steps after which the outer loss is taken."""
    last = problem.steps - 1
    return range(last - last // 5, last + 1) if outer.objective == "trajectory" else range(last, last + 1)


def dead_layers(problem: InnerProblem, gradients: Tensors) -> int:
    """How many quantized layers have a weight gradient that is zero everywhere; gradients {parameter: [...]}."""
    return sum(not bool(gradients[layer.weight_key].detach().any()) for layer in problem.network.layers)


def control_gradient(unroll: Unroll, problem: InnerProblem, controls: Controls, outer: OuterLoss) -> ControlGradient:
    """One reverse pass: the derivative in every control of every layer at every step, whatever their number.

    Args:
        unroll: the engine.
        problem: what is trained, from its seed.
        controls: {control: [T, L]}; they are cast to the dtype and device of the network's parameters.
        outer: how the run is judged.

    Raises:
        MetaschedError: what the engine refuses, and controls with gains.
    """
    check_open_loop(controls)
    start = time.perf_counter()
    like = next(problem.network.module.parameters())
    leaves = {name: v.detach().to(like).requires_grad_() for name, v in controls.items()}
    result = unroll(problem, leaves, outer)
    found = torch.autograd.grad(result.loss, list(leaves.values()), allow_unused=True)
    wrt = {n: torch.zeros_like(c) if g is None else g for (n, c), g in zip(leaves.items(), found, strict=True)}
    seconds = time.perf_counter() - start
    return gradient_record(problem, result.loss.detach(), result.score, wrt, float(result.dead_layers), seconds)


def check_open_loop(controls: Controls) -> None:
    """Refuses the gains of a closed-loop schedule ({control:feature: [T, L]}) where a run is differentiated.

    Raises:
        MetaschedError: there are some.
    """
    if is_closed_loop(controls):
        problem = "is closed-loop, and what it measures there has no derivative"
        raise MetaschedError("schedule", problem, "set meta.estimator to es, or schedule.feedback to false")


def gradient_record(
    problem: InnerProblem, loss: torch.Tensor, score: torch.Tensor, wrt: Tensors, dead_layers: float, seconds: float
) -> ControlGradient:
    """The record of one run: its derivative {control: [T, L]}, 0-d loss and score, and which numbers are not finite."""
    nonfinite = sum(int((~torch.isfinite(g)).sum()) for g in (*wrt.values(), loss))
    faults = derivative_faults(wrt, [layer.name for layer in problem.network.layers])
    if not math.isfinite(float(loss)):
        faults = (Fault("outer loss"), *faults)
    return ControlGradient(float(loss), float(score), wrt, nonfinite, dead_layers, seconds, faults)


def derivative_faults(wrt: Controls, layers: Sequence[str]) -> tuple[Fault, ...]:
    """Where the derivative in each control, {control: [T, L]}, stopped to be finite on the way back."""
    faults = []
    for name, slope in wrt.items():
        bad = (~slope.isfinite()).nonzero()  # sorted by step
        if len(bad):
            step, layer = (int(place) for place in bad[-1])
            faults.append(Fault("hypergradient", name, layers[layer], step))
    return tuple(faults)


def norm(tensors: Sequence[torch.Tensor]) -> float:
    """Euclidean norm over all elements; finite where it can be, though the squares overflow.

    >>> norm([torch.tensor([3.0, 4.0], dtype=torch.float64) * 2.0**600]) == 5 * 2.0**600
    True
    """
    flat = torch.cat([t.flatten() for t in tensors])
    plain = float(flat.norm())
    largest = float(flat.abs().max()) if len(flat) else 0.0
    if math.isfinite(plain) or not math.isfinite(largest):
        return plain
    return largest * float((flat / largest).norm())


def pull_back(schedule: nn.Module, values: Controls, found: ControlGradient) -> Hypergradient:
    """From the controls to the schedule's parameters: one product with the Jacobian of ``values = schedule(...)``.

    ``values`` and the derivative ``found.wrt`` are {control: [T, L]}; the gradient has one tensor for
    each parameter, of its shape. The graph of ``values`` is kept, so that several inner runs under the same values can
    be pulled back one by one.
    """
    parameters = list(schedule.parameters())
    learned = [n for n in values if values[n].requires_grad]
    seeds = [found.wrt[n].to(values[n]) for n in learned]
    gradient = vector_jacobian([values[n] for n in learned], parameters, seeds, retain_graph=True)
    gradient = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradient, strict=True)]
    lost = sum(int((~g.isfinite()).sum()) for g in gradient) if found.nonfinite == 0 else 0
    diagnostics = Diagnostics(
        gradient_norm=norm(gradient),
        nonfinite=found.nonfinite + lost,
        dead_layers=found.dead_layers,
        seconds=found.seconds,
        peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        score=found.score,
        faults=(*found.faults, Fault("hypergradient", place="the schedule")) if lost else found.faults,
    )
    return Hypergradient(found.loss, gradient, diagnostics)


def estimate_by(unroll: Unroll, schedule: nn.Module, problem: InnerProblem, outer: OuterLoss) -> Hypergradient:
    """The hypergradient through ``unroll``: derivative in the controls, then pulled back to the parameters."""
    values: Tensors = schedule(progress_of_steps(problem.steps), problem.network.layers)
    return pull_back(schedule, values, control_gradient(unroll, problem, values, outer))
