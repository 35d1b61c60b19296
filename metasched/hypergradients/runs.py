"""The inner runs that an estimator may ask for, wherever they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from metasched.hypergradients.base import (
    ControlGradient,
    Controls,
    OuterLoss,
    Unroll,
    control_gradient,
    judge,
    judged_steps,
)
from metasched.network import rows
from metasched.training.step import InnerProblem, inner_step


class Run(NamedTuple):
    """An inner run to be done: under which controls, {control: [T, L]}, and from which seed."""

    controls: Controls
    seed: int


class Judged(NamedTuple):
    """Outer loss and score of a run."""

    loss: float
    score: float


class Runs(Protocol):
    """Inner runs of one problem; all answers are in the order of the questions, and functions of them alone."""

    @property
    def problem(self) -> InnerProblem:
        """The problem that is differentiated (its method may be relaxed)."""
        ...

    def gradients(self, runs: Sequence[Run]) -> list[ControlGradient]:
        """The derivative of each run's outer loss in its controls, through the relaxed method."""
        ...

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        """The outer loss of each run as it is played (no relaxed mask), without a derivative."""
        ...


@dataclass(frozen=True)
class LocalRuns:
    """Runs in this process, one after the other.

    Attributes:
        problem: what is differentiated.
        played: the same without relaxation: what is judged where no derivative is asked for.
        outer: how the end of a run is judged.
        unroll: how a run is differentiated.
    """

    problem: InnerProblem
    played: InnerProblem
    outer: OuterLoss
    unroll: Unroll

    def gradients(self, runs: Sequence[Run]) -> list[ControlGradient]:
        """See Runs."""
        return [
            control_gradient(self.unroll, self.problem.with_seed(run.seed), run.controls, self.outer) for run in runs
        ]

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        """See Runs."""
        return [judged_run(self.played.with_seed(run.seed), run.controls, self.outer) for run in runs]


def judged_run(problem: InnerProblem, controls: Controls, outer: OuterLoss) -> Judged:
    """Train under the controls and judge, without a graph."""
    like = next(problem.network.module.parameters())
    controls = {name: v.detach().to(like) for name, v in controls.items()}
    state = problem.initial(rows(controls, 0))
    losses, scores = [], []
    for step in range(problem.steps):
        now = rows(controls, step)
        state, _, _ = inner_step(problem, state, now, step, differentiable=False)
        if step in judged_steps(problem, outer):
            with torch.no_grad():
                loss, score = judge(problem, outer, state, now, problem.network.call(problem.network.buffers()))
            losses.append(loss)
            scores.append(score)
    return Judged(float(torch.stack(losses).mean()), float(torch.stack(scores).mean()))
