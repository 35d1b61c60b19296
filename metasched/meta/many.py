"""One outer step over several tasks: an ordinary estimator on each, pulled back to the weights that all share.

    g = (1 / n) sum over n drawn tasks of w_i clip(J_i^T g_i),    numbers of task i = J_i weights (schedules/shared.py)

Tasks are drawn anew in each step, with weights w_i (families/drawing.py). The estimator is given the few numbers of a
task and that task's own inner runs, whose slopes are on one scale for all tasks (runs/grouped.py; exact gradients are
divided by the root mean square of their norms, or each by its own). So it perturbs or differentiates no more numbers
than for one task. The norm that ``meta.clip`` bounds is that of a task's gradient in the weights.

It is an estimator itself, of the shared schedule: the outer loop, its guards and its checkpoints do not know of tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Protocol, cast

import torch
from torch import nn

from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.engines.base import Hypergradient, norm
from metasched.estimators import ESTIMATORS, build_estimator
from metasched.estimators.base import Estimate, Estimator, State
from metasched.families.drawing import Weighed, drawn_tasks
from metasched.families.family import DrawnTask, TaskFamily
from metasched.meta.config import MetaConfig
from metasched.meta.guards import keep
from metasched.methods.base import Control
from metasched.runs.grouped import GroupedRuns, Normalize
from metasched.runs.local import Runs
from metasched.schedules.shared import SharedSchedule
from metasched.training.problem import build_problem


class RunsOfAny(Runs, Protocol):
    """Inner runs that can be asked for those of another problem."""

    def of(self, config: ProblemConfig) -> Runs:
        """Those of another problem."""
        ...


@dataclass(frozen=True)
class ManyTasks:
    """One hypergradient for each drawn task, of a SharedSchedule.

    Attributes:
        inner: the estimator that each task is given.
        family: where tasks come from; its section ``tasks`` says how many and on what scale.
        probabilities: of the entries; None: their shares.
        exact: whether ``inner`` gives exact gradients, and not slopes of pairs.
    """

    inner: Estimator
    family: TaskFamily
    probabilities: tuple[float, ...] | None
    exact: bool

    def begin(self, schedule: nn.Module, runs: Runs) -> State:
        """What ``inner`` carries on, in numbers of any task."""
        return self.inner.begin(_shared(schedule).form, runs)

    def check(self, schedule: nn.Module, runs: Runs, num_runs: int, state: State) -> None:
        """See Estimator."""
        self.inner.check(_shared(schedule).form, runs, num_runs, state)

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """See Estimator; the tasks are a function of the first seed."""
        shared, settings = _shared(schedule), self.family.config
        drawn = drawn_tasks(self.family, seeds[0], settings.per_step, self.probabilities)
        found: list[Hypergradient] = []
        notes: list[dict[str, float]] = []
        inner_steps = 0
        for i, (task, _) in enumerate(drawn):
            check_controls(task, shared.form.controls)
            features = features_for(task, settings.features)
            own = cast(RunsOfAny, runs).of(task.problem)
            normalize: Normalize = "none" if self.exact else settings.normalize
            of_task = [derive_seed(seed, "of task", i) for seed in seeds]
            estimate = self.inner.estimate(shared.at(features), GroupedRuns(own, normalize), of_task, state)
            each = scaled(estimate.found, settings.normalize) if self.exact else estimate.found
            one = as_one(each)
            found.append(replace(one, gradient=shared.pulled_back(features, one.gradient)))
            notes.append(dict(estimate.notes))
            state, inner_steps = estimate.state, inner_steps + estimate.inner_steps
        logged = _means(notes) | _by_name(drawn, found)
        line = ", ".join(f"{w.task.label} {e.loss:.4f}" for w, e in zip(drawn, found, strict=True))
        return Estimate(found, state, inner_steps, logged, f"  loss: {line}", [w.weight for w in drawn])


def build_many(meta: MetaConfig, family: TaskFamily, probabilities: Sequence[float] | None) -> ManyTasks:
    """The estimator over many tasks that is configured.

    Raises:
        MetaschedError: ``meta.estimator`` cannot learn over many tasks.
    """
    kind = ESTIMATORS[meta.estimator].many
    if not kind:
        able = ", ".join(name for name, row in ESTIMATORS.items() if row.many)
        problem = f"{meta.estimator} carries on what it knows of one task, and there are several"
        raise MetaschedError("meta.estimator", problem, f"set it to one of {able}")
    q = None if probabilities is None else tuple(probabilities)
    return ManyTasks(build_estimator(meta), family, q, kind == "exact")


def features_for(task: DrawnTask, used: bool) -> dict[str, float]:
    """The features that a schedule sees of a task: none where ``tasks.features`` is false."""
    return task.features if used else {}


def check_controls(task: DrawnTask, controls: Sequence[Control]) -> None:
    """Refuses a task whose method has other controls than those that all tasks share.

    Raises:
        MetaschedError: it has.
    """
    own = build_problem(task.problem).network.method.controls
    if tuple(own) != tuple(controls):
        names = (", ".join(c.name for c in some) or "none" for some in (own, controls))
        problem = "its method has other controls, or controls of other ranges ({}), than the others ({})".format(*names)
        raise MetaschedError(f"tasks.{task.name}", problem, "learn over tasks of one method")


def as_one(found: Sequence[Hypergradient]) -> Hypergradient:
    """The mean of a task's hypergradients that are finite; the first one where none is."""
    kept = keep(found)
    if len(found) == 1 or not kept:
        return found[0]
    gradient = [torch.stack(of_runs).mean(0) for of_runs in zip(*(e.gradient for e in kept), strict=True)]
    every = [e.diagnostics for e in kept]
    diagnostics = replace(
        every[0],
        gradient_norm=norm(gradient),
        dead_layers=fmean(d.dead_layers for d in every),
        seconds=math.fsum(d.seconds for d in every),
        peak_bytes=max(d.peak_bytes for d in every),
        score=fmean(d.score for d in every),
        faults=tuple(fault for e in found for fault in e.diagnostics.faults),
    )
    return Hypergradient(fmean(e.loss for e in kept), gradient, diagnostics)


def scaled(found: Sequence[Hypergradient], how: Normalize) -> list[Hypergradient]:
    """Exact gradients of a task, on one scale with those of others; those that are not finite stay as they are."""
    sizes = {i: norm(e.gradient) for i, e in enumerate(found) if keep([e])}
    if how == "none" or not any(sizes.values()):
        return list(found)
    common = math.sqrt(fmean(size * size for size in sizes.values()))
    return [
        replace(e, gradient=[g / (common if how == "group" else sizes[i]) for g in e.gradient]) if sizes.get(i) else e
        for i, e in enumerate(found)
    ]


def _shared(schedule: nn.Module) -> SharedSchedule:
    assert isinstance(schedule, SharedSchedule), schedule
    return schedule


def _means(notes: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean over tasks of each note."""
    names = dict.fromkeys(name for of_task in notes for name in of_task)
    return {name: fmean(own[name] for own in notes if name in own) for name in names}


def _by_name(drawn: Sequence[Weighed], found: Sequence[Hypergradient]) -> dict[str, float]:
    """Loss and score of each entry that was drawn, in the mean over its tasks, and what they count."""
    own: dict[str, list[float]] = {}
    for (task, weight), e in zip(drawn, found, strict=True):
        for what, value in (("loss", e.loss), ("score", e.diagnostics.score), ("weight", weight)):
            own.setdefault(f"{what}/{task.name}", []).append(value)
    return {name: fmean(values) for name, values in own.items()}
