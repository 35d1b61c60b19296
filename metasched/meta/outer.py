"""The outer loop: the schedule network is moved down the hypergradient, averaged over a few inner runs a step.

    theta <- Adam(theta, mean over r of clip(g_r))

g_r are the hypergradients of an estimator: one for each inner run, or one of a population. Each outer step draws fresh
inner seeds. The schedule that is returned has the mean of the parameters over the last half of the steps: the estimates
are noisy, and the mean of the iterates is a better point than the last of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from metasched.config import Experiment
from metasched.errors import MetaschedError
from metasched.hypergradients import build_estimator, find_unroll
from metasched.hypergradients.base import OuterLoss
from metasched.hypergradients.sweep import plan_for
from metasched.meta.guards import clip, keep
from metasched.meta.runs import PooledRuns
from metasched.randomness import derive_seed
from metasched.schedules.learnable import LearnableSchedule
from metasched.training.pool import Pool
from metasched.training.problem import build_problem

_MOST_BAD_STEPS = 3  # outer steps in a row without one finite estimate


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


class MetaTraining(NamedTuple):
    """The outcome of the outer loop.

    Attributes:
        schedule: with the mean parameters of the last half.
        inner_steps: training steps spent; where an estimator goes back through them, that comes on top.
        history: one record a step.
    """

    schedule: LearnableSchedule
    inner_steps: int
    history: tuple[OuterStep, ...]


def check_estimator(experiment: Experiment) -> None:
    """Refuses an estimator that this experiment cannot use, before anything is written.

    Raises:
        MetaschedError: settings that do not go together, a memory budget for an estimator that cannot keep to one, or
            one that is too small.
    """
    meta = experiment.meta
    if meta.estimator == "forward" and experiment.schedule.kind != "family":
        problem = "forward takes an inner run for each parameter of the schedule, and a network has hundreds"
        raise MetaschedError("meta.estimator", problem, "set schedule.kind to family, or meta.estimator to sweep")
    build_estimator(meta)
    find_unroll(meta.estimator, meta.memory)
    if meta.memory is not None:
        problem = build_problem(experiment, relaxation=meta.relaxation)
        shape = (problem.steps, len(problem.network.layers))
        like = next(problem.network.module.parameters()).detach()
        middles = {
            c.name: like.new_full(shape, (c.low + c.high) / 2).requires_grad_() for c in problem.network.method.controls
        }
        plan_for(problem, middles, OuterLoss(meta.objective, meta.surrogate), meta.memory)


def meta_train(
    experiment: Experiment, schedule: LearnableSchedule, pool: Pool, log: Callable[[OuterStep], None]
) -> MetaTraining:
    """Learn the schedule; ``log`` is called after each outer step.

    Raises:
        MetaschedError: three outer steps in a row gave no finite estimate.
    """
    meta = experiment.meta
    runs = PooledRuns(experiment, pool)
    estimator = build_estimator(meta)
    state = estimator.begin(schedule, runs)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=meta.lr)
    history: list[OuterStep] = []
    tail = _Mean(schedule)
    bad = 0
    for step in range(meta.steps):
        start = time.perf_counter()
        seeds = [derive_seed(experiment.seed, "inner run", step, run) for run in range(meta.runs)]
        found, state, inner_steps, notes, line = estimator.estimate(schedule, runs, seeds, state)
        finite = keep(found)
        bad = 0 if finite else bad + 1
        if bad == _MOST_BAD_STEPS:
            names = sorted({name for f in found for name in f.diagnostics.bad_controls})
            raise MetaschedError(
                f"outer step {step}",
                f"no finite hypergradient of {experiment.task.name} in {bad} steps in a row "
                f"(controls: {', '.join(names) or 'none: the loss itself'})",
                "raise meta.noise_floor, lower meta.lr, shorten task.steps or set meta.estimator to es",
            )
        clipped = [clip(e.gradient, meta.clip) for e in finite]
        if finite:
            for p, *gradients in zip(schedule.parameters(), *(g for g, _ in clipped), strict=True):
                p.grad = torch.stack(gradients).mean(0)
            optimizer.step()
        if step >= meta.steps // 2:
            tail.add(schedule)
        record = OuterStep(
            step=step,
            loss=_mean([e.loss for e in finite]),
            score=_mean([e.diagnostics.score for e in finite]),
            gradient_norm=_mean([e.diagnostics.gradient_norm for e in finite]),
            clipped=sum(was for _, was in clipped),
            skipped=len(found) - len(finite),
            dead_layers=_mean([e.diagnostics.dead_layers for e in found]),
            nonfinite=sum(e.diagnostics.nonfinite for e in found),
            inner_steps=inner_steps,
            seconds=time.perf_counter() - start,
            notes=notes,
            line=line,
        )
        history.append(record)
        log(record)
    tail.store(schedule)
    return MetaTraining(schedule, sum(r.inner_steps for r in history), tuple(history))


class _Mean:
    """Running mean of a schedule's parameters."""

    def __init__(self, schedule: LearnableSchedule) -> None:
        self.sums = [torch.zeros_like(p) for p in schedule.parameters()]
        self.count = 0

    def add(self, schedule: LearnableSchedule) -> None:
        for total, p in zip(self.sums, schedule.parameters(), strict=True):
            total += p.detach()
        self.count += 1

    def store(self, schedule: LearnableSchedule) -> None:
        if self.count:
            with torch.no_grad():
                for total, p in zip(self.sums, schedule.parameters(), strict=True):
                    p.copy_(total / self.count)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
