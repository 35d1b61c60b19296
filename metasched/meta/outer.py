"""The outer loop: the schedule network is moved down the hypergradient, averaged over a few inner runs a step.

    theta <- Adam(theta, mean over r of w_r clip(g_r))

g_r are the hypergradients of an estimator: one for each inner run, or one of a population, or one for each of many
tasks (many.py), which alone have weights w_r other than 1. Each outer step draws fresh
inner seeds. The schedule that is returned has the mean of the parameters over the last half of the steps: the estimates
are noisy, and the mean of the iterates is a better point than the last of them.

A step is a function of the configuration and of one record, OuterState, and gives the next one: whoever saves it can go
on from there, with the same bits. Random numbers are functions of (seed, step) and have no state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss
from metasched.engines.sweep import plan_for
from metasched.estimators import build_estimator
from metasched.estimators.base import Estimate, Estimator
from metasched.estimators.table import ESTIMATORS
from metasched.meta.adam import QUANTITIES, Adam
from metasched.meta.config import MetaConfig
from metasched.meta.guards import MOST_BAD_STEPS, RunStopped, clip, keep, listed, update
from metasched.network.flat import Tensors
from metasched.runs.local import Runs
from metasched.schedules.shared import LearnedSchedule
from metasched.training.faults import Fault
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem

Learned = TypeVar("Learned", bound=LearnedSchedule)


class OuterRuns(Runs, Protocol):
    """The inner runs of an outer loop, and how it learns from them."""

    @property
    def meta(self) -> MetaConfig:
        """How it learns."""
        ...

    @property
    def label(self) -> str:
        """What is trained, for messages."""
        ...


class OuterStep(NamedTuple):
    """What one outer step did: logged as ``outer/...``, the estimator's notes as ``estimator/...``, its line shown."""

    step: int
    loss: float
    score: float
    gradient_norm: float
    clipped: int
    skipped: int
    dead_layers: float
    nonfinite: int
    inner_steps: int
    seconds: float
    notes: dict[str, float]
    line: str | None = None
    updates_skipped: int = 0  # of all steps so far: logged as guard/skipped
    fault: str = ""  # numbers of this step that were not finite: logged as guard/fault


class OuterState(NamedTuple):
    """Where the outer loop stands; nothing in it is changed in place.

    Attributes:
        step: outer steps done.
        parameters: of the schedule, by name.
        optimizer: ``<quantity>.<parameter>`` of Adam; empty before the first update.
        totals: sums of the parameters over those steps of the last half that are done.
        averaged: how many these are.
        estimator: what the estimator carries on.
        bad_steps: the latest steps, in a row, without an update.
        history: one record a step.
    """

    step: int
    parameters: Tensors
    optimizer: Tensors
    totals: Tensors
    averaged: int
    estimator: Tensors
    bad_steps: int
    history: tuple[OuterStep, ...]


class MetaTraining(NamedTuple, Generic[Learned]):
    """The outcome of the outer loop.

    Attributes:
        schedule: with the mean parameters of the last half.
        horizon: T, training steps of an inner run (of many tasks: of the one that stands for them).
        inner_steps: training steps spent; where an estimator goes back through them, that comes on top.
        history: one record a step.
    """

    schedule: Learned
    horizon: int
    inner_steps: int
    history: tuple[OuterStep, ...]


def check_estimator(config: ProblemConfig, meta: MetaConfig, kind: str, *, feedback: bool = False) -> None:
    """Refuses an estimator that cannot be used, before anything is written.

    Args:
        config: the problem that is trained.
        meta: names the estimator.
        kind: of the learnable schedule, ``network`` or ``family``.
        feedback: whether the schedule is closed-loop.

    Raises:
        MetaschedError: settings that do not go together, a memory budget for an estimator that cannot keep to one, or
            one that is too small.
    """
    if meta.estimator == "forward" and kind != "family":
        problem = "forward takes an inner run for each parameter of the schedule, and a network has hundreds"
        raise MetaschedError("meta.estimator", problem, "set schedule.kind to family, or meta.estimator to sweep")
    build_estimator(meta)
    if feedback and not ESTIMATORS[meta.estimator].feedback:
        can = ", ".join(name for name, row in ESTIMATORS.items() if row.feedback)
        problem = f"{meta.estimator} cannot learn a closed-loop schedule, which takes scores of whole runs"
        raise MetaschedError("meta.estimator", problem, f"set it to {can}, or schedule.feedback to false")
    find_unroll(meta.estimator, meta.memory)
    if meta.memory is not None:
        problem = build_problem(config, relaxation=meta.relaxation)
        shape = (problem.steps, len(problem.network.layers))
        like = next(problem.network.module.parameters()).detach()
        middle = {
            c.name: like.new_full(shape, (c.low + c.high) / 2).requires_grad_() for c in problem.network.method.controls
        }
        plan_for(problem, middle, OuterLoss(meta.objective, meta.surrogate), meta.memory)


def meta_train(
    runs: OuterRuns,
    seed: int,
    schedule: Learned,
    log: Callable[[OuterStep], None],
    since: OuterState | None = None,
    save: Callable[[OuterState], None] | None = None,
    estimator: Estimator | None = None,
) -> MetaTraining[Learned]:
    """Learn the schedule, in place.

    Args:
        runs: does the inner runs; its ``meta`` says how to learn.
        seed: of the experiment.
        schedule: what is learned.
        log: called after each outer step.
        since: where to go on; None starts at the schedule as it is.
        save: called before the first step and after each, once it is logged.
        estimator: gives the hypergradients; None: the one that ``meta`` names.

    Raises:
        MetaschedError: three outer steps in a row changed nothing, because of numbers that are not finite (RunStopped).
    """
    meta, estimator = runs.meta, estimator or build_estimator(runs.meta)
    state = since or _begin(schedule, estimator, runs)
    if save:
        save(state)
    while state.step < meta.steps:
        began = time.perf_counter()
        put(schedule, state.parameters)  # the schedule is where it is computed, whatever its parameters were
        seeds = [derive_seed(seed, "inner run", state.step, run) for run in range(meta.runs)]
        estimate = estimator.estimate(schedule, runs, seeds, state.estimator)
        state = _after(meta, schedule, estimate, runs.problem, state, began)
        log(state.history[-1])
        if state.bad_steps == MOST_BAD_STEPS:
            raise _stopped(runs.label, state)
        if save:
            save(state)
    put(schedule, averages(state))
    return MetaTraining(schedule, runs.problem.steps, sum(r.inner_steps for r in state.history), state.history)


def put(schedule: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Give a schedule its parameters, [...] each, by name."""
    with torch.no_grad():
        for name, p in schedule.named_parameters():
            p.copy_(values[name])


def averages(state: OuterState) -> Tensors:
    """The mean of the parameters over the last half of the steps; before it, the parameters."""
    return {name: t / state.averaged for name, t in state.totals.items()} if state.averaged else state.parameters


def _begin(schedule: nn.Module, estimator: Estimator, runs: OuterRuns) -> OuterState:
    parameters = _parameters(schedule)
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    return OuterState(0, parameters, {}, totals, 0, dict(estimator.begin(schedule, runs)), 0, ())


def _after(
    meta: MetaConfig,
    schedule: LearnedSchedule,
    estimate: Estimate,
    problem: InnerProblem,
    state: OuterState,
    began: float,
) -> OuterState:
    """The state after an outer step, from the one before it and the estimate taken there.

    Args:
        meta, problem: how it is learned, and on what.
        schedule: at the parameters of ``state``; moved.
        estimate: hypergradients at these parameters.
        state: before the step.
        began: ``time.perf_counter()`` at its begin.
    """
    step = state.step
    found = estimate.found
    finite = keep(found)
    faults = [fault for e in found for fault in e.diagnostics.faults]
    clipped = [clip(e.gradient, meta.clip) for e in finite]
    gradients = [g for g, _ in clipped]
    if estimate.weights is not None:
        kept = [w for w, e in zip(estimate.weights, found, strict=True) if keep([e])]
        gradients = [[w * g for g in gradient] for w, gradient in zip(kept, gradients, strict=True)]
    optimizer, moved = state.optimizer, bool(finite)
    if finite:
        optimizer, fault = _update(schedule, state.optimizer, gradients, meta.lr, problem)
        if fault:
            faults, moved = [*faults, fault], False
    parameters = _parameters(schedule)
    late = moved and step >= meta.steps // 2
    record = OuterStep(
        step=step,
        loss=_mean([e.loss for e in finite]),
        score=_mean([e.diagnostics.score for e in finite]),
        gradient_norm=_mean([e.diagnostics.gradient_norm for e in finite]),
        clipped=sum(was for _, was in clipped),
        skipped=len(found) - len(finite),
        dead_layers=_mean([e.diagnostics.dead_layers for e in found]),
        nonfinite=sum(e.diagnostics.nonfinite for e in found),
        inner_steps=estimate.inner_steps,
        seconds=time.perf_counter() - began,
        notes=estimate.notes,
        line=estimate.line,
        updates_skipped=(state.history[-1].updates_skipped if state.history else 0) + (not moved),
        fault=listed(faults),
    )
    return OuterState(
        step=step + 1,
        parameters=parameters,
        optimizer=optimizer,
        totals={name: t + parameters[name] for name, t in state.totals.items()} if late else state.totals,
        averaged=state.averaged + late,
        estimator={name: t.detach().clone() for name, t in estimate.state.items()},  # as if it had been saved and read
        bad_steps=0 if moved else state.bad_steps + 1,
        history=(*state.history, record),
    )


def _update(
    schedule: LearnedSchedule,
    state: Tensors,
    gradients: Sequence[list[torch.Tensor]],
    lr: float,
    problem: InnerProblem,
) -> tuple[Tensors, Fault | None]:
    """Move the schedule by one Adam step along the mean of the gradients; Adam's state after it.

    Where that would make anything that is not finite, nothing changes, and what it was is given back too.
    """
    named = dict(schedule.named_parameters())
    optimizer = Adam(named.values(), lr=lr)
    if state:
        for name, p in named.items():
            optimizer.state[p] = {q: state[f"{q}.{name}"].clone() for q in QUANTITIES}
    mean = [torch.stack(of_runs).mean(0) for of_runs in zip(*gradients, strict=True)]
    if fault := update(schedule, optimizer, mean, problem.steps, problem.network.layers):
        return state, fault
    return {f"{q}.{name}": optimizer.state[p][q] for name, p in named.items() for q in QUANTITIES}, None


def _parameters(schedule: nn.Module) -> Tensors:
    return {name: p.detach().clone() for name, p in schedule.named_parameters()}


def _stopped(task: str, state: OuterState) -> RunStopped:
    return RunStopped(
        f"outer step {state.step}",
        f"no update on {task} in {state.bad_steps} steps in a row, because numbers are not finite "
        f"({state.history[-1].fault or 'hypergradient'})",
        "raise meta.noise_floor, lower meta.lr or optimizer.lr, shorten task.steps or set meta.estimator to es",
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
