"""The inner runs that an estimator may ask for, wherever they are computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from metasched.engines.base import (
    ControlGradient,
    Controls,
    OuterLoss,
    Unroll,
    control_gradient,
    judge,
    judged_steps,
)
from metasched.engines.stacked import control_gradients_mapped, judge_mapped
from metasched.engines.tangent import Slope, slope_along
from metasched.network.flat import rows, rows_of
from metasched.schedules.feedback import is_closed_loop
from metasched.training.faults import Fault, broken, locate
from metasched.training.loop import take_steps
from metasched.training.replayed import stacked_steps
from metasched.training.stacked import (
    gradient_mapping_pays,
    mappable,
    mapping_pays,
    of_run,
    stacked,
)
from metasched.training.state import InnerProblem, TrainingState


class Run(NamedTuple):
    """An inner run to be done: under which controls, {control: [T, L]}, and from which seed."""

    controls: Controls
    seed: int


class Judged(NamedTuple):
    """Outer loss and score of a run; where a number first was not finite, if one was."""

    loss: float
    score: float
    fault: Fault | None = None


class Reached(NamedTuple):
    """Where a run stands.

    Attributes:
        step: steps done.
        state: after them.
        loss: outer loss so far. Where the end is judged: that of the state, were it the end. For ``trajectory``: the
            judged steps' part of the mean, so that it is 0 before the first of them. After the last step either one
            is the outer loss of the run.
        score: likewise.
        fault: where a number first was not finite, if one was; the loss is NaN then.
    """

    step: int
    state: TrainingState
    loss: float
    score: float
    fault: Fault | None = None


class Segment(NamedTuple):
    """Part of an inner run to be done: from where another one stopped, or (None) from the initial state.

    Attributes:
        controls: of the whole run, {control: [T, L]}.
        seed: of the run.
        since: where it starts.
        stop: the first step that is not done any more.
    """

    controls: Controls
    seed: int
    since: Reached | None
    stop: int


class Along(NamedTuple):
    """An inner run to be done with a tangent: under which controls and along which direction, {control: [T, L]}."""

    controls: Controls
    direction: Controls
    seed: int


class Runs(Protocol):
    """Inner runs of one problem; all answers are in the order of the questions, and functions of them alone."""

    @property
    def problem(self) -> InnerProblem:
        """The problem that is differentiated (its method may be relaxed)."""
        ...

    def gradients(self, runs: Sequence[Run]) -> list[ControlGradient]:
        """The derivative of each run's outer loss in its controls, through the relaxed method."""
        ...

    def slopes(self, runs: Sequence[Along]) -> list[Slope]:
        """The derivative of each run's outer loss along its direction, through the relaxed method."""
        ...

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        """The outer loss of each run as it is played (no relaxed mask), without a derivative."""
        ...

    def segments(self, segments: Sequence[Segment]) -> list[Reached]:
        """Where each run is at the stop of its segment, as it is played, without a derivative."""
        ...


@dataclass(frozen=True)
class LocalRuns:
    """Runs in this process: one after the other, or mapped where that pays (see ``mapping_pays``).

    Attributes:
        problem: what is differentiated.
        played: the same without relaxation: what is judged where no derivative is asked for.
        outer: how the end of a run is judged.
        unroll: how a run is differentiated.
        memory: bytes that a run may take in a mapped sweep; None is economical.
        sweeps: whether ``unroll`` is the sweep, which can be mapped.
    """

    problem: InnerProblem
    played: InnerProblem
    outer: OuterLoss
    unroll: Unroll
    memory: int | None = None
    sweeps: bool = False

    def gradients(self, runs: Sequence[Run]) -> list[ControlGradient]:
        """See Runs."""
        mapped = self._gradients_mapped(runs)
        answers = []
        for i, run in enumerate(runs):
            problem = self.problem.with_seed(run.seed)
            found = mapped[i] if mapped else control_gradient(self.unroll, problem, run.controls, self.outer)
            if not math.isfinite(found.loss) and (fault := locate(problem, run.controls, None, range(problem.steps))):
                found = found._replace(faults=(fault,))
            answers.append(found)
        return answers

    def _gradients_mapped(self, runs: Sequence[Run]) -> list[ControlGradient] | None:
        """All of them by one sweep where that pays and torch.vmap can do it, else None."""
        if not (self.sweeps and gradient_mapping_pays(self.problem, len(runs))):
            return None
        controls, seeds = [run.controls for run in runs], [run.seed for run in runs]
        try:
            return control_gradients_mapped(self.problem, controls, seeds, self.outer, self.memory)
        except RuntimeError:  # what torch.vmap refuses; any other reason comes up again without it
            return None

    def slopes(self, runs: Sequence[Along]) -> list[Slope]:
        """See Runs."""
        answers = []
        for run in runs:
            problem = self.problem.with_seed(run.seed)
            found = slope_along(problem, run.controls, run.direction, self.outer)
            if not math.isfinite(found.loss):
                fault = locate(problem, run.controls, None, range(problem.steps))
                found = found._replace(fault=fault or Fault("outer loss"))
            elif not math.isfinite(found.slope):
                found = found._replace(fault=Fault("hypergradient"))
            answers.append(found)
        return answers

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        """See Runs."""
        whole = [Segment(run.controls, run.seed, None, self.played.steps) for run in runs]
        return [Judged(end.loss, end.score, end.fault) for end in self.segments(whole)]

    def segments(self, segments: Sequence[Segment]) -> list[Reached]:
        """See Runs."""
        alike: dict[tuple[int, int], list[int]] = {}  # over the same steps
        for i, s in enumerate(segments):
            alike.setdefault((s.since.step if s.since else 0, s.stop), []).append(i)
        ends: dict[int, Reached] = {}
        for indices in alike.values():
            ends |= zip(indices, reach_each(self.played, [segments[i] for i in indices], self.outer), strict=True)
        return [self._with_fault(s, ends[i]) for i, s in enumerate(segments)]

    def _with_fault(self, segment: Segment, end: Reached) -> Reached:
        """With the fault of a run that has one."""
        if math.isfinite(end.loss) and not broken(end.state):
            return end
        since, first = (segment.since.state, segment.since.step) if segment.since else (None, 0)
        fault = locate(self.played.with_seed(segment.seed), segment.controls, since, range(first, segment.stop))
        return end._replace(loss=math.nan, fault=fault or Fault("outer loss"))


def reach(problem: InnerProblem, segment: Segment, outer: OuterLoss) -> Reached:
    """Train to the stop of a segment and judge, without a graph."""
    like = next(problem.network.module.parameters())
    controls = {name: v.detach().to(like) for name, v in segment.controls.items()}
    since = segment.since or Reached(0, problem.initial(rows(controls, 0)), 0.0, 0.0)
    state, loss, score = since.state, 0.0, 0.0
    judged = judged_steps(problem, outer)
    if outer.objective == "trajectory":
        loss, score = since.loss, since.score
    else:
        judged = range(segment.stop - 1, segment.stop)
    steps = range(since.step, segment.stop)
    for done in take_steps(problem, state, rows_of(controls, steps), steps):
        state = done.state
        if done.step in judged:
            with torch.no_grad():
                found = judge(problem, outer, state, done.row, problem.network.call(problem.network.buffers()))
            loss, score = loss + float(found[0]) / len(judged), score + float(found[1]) / len(judged)
    return Reached(segment.stop, state, loss, score)


def reach_each(problem: InnerProblem, segments: Sequence[Segment], outer: OuterLoss) -> list[Reached]:
    """``reach`` for segments over the same steps, mapped where that pays and none is closed-loop."""
    if mapping_pays(problem, len(segments)) and not any(is_closed_loop(s.controls) for s in segments):
        try:
            return reach_mapped(problem, segments, outer)
        except RuntimeError:  # what torch.vmap refuses; any other reason comes up again below
            pass
    return [reach(problem.with_seed(s.seed), s, outer) for s in segments]


def reach_mapped(problem: InnerProblem, segments: Sequence[Segment], outer: OuterLoss) -> list[Reached]:
    """``reach`` for segments over the same steps, all at once.

    Raises:
        RuntimeError: torch.vmap refuses the model or the method.
    """
    like = next(problem.network.module.parameters())
    each = [{name: v.detach().to(like) for name, v in s.controls.items()} for s in segments]
    since = [
        s.since or Reached(0, problem.with_seed(s.seed).initial(rows(c, 0)), 0.0, 0.0)
        for s, c in zip(segments, each, strict=True)
    ]
    start, stop = since[0].step, segments[0].stop
    trajectory = outer.objective == "trajectory"
    judged = judged_steps(problem, outer) if trajectory else range(stop - 1, stop)
    totals = [(s.loss, s.score) if trajectory else (0.0, 0.0) for s in since]
    problem, state = mappable(problem), stacked(problem, [s.state for s in since])
    controls = {name: torch.stack([c[name] for c in each], 1) for name in each[0]}  # [T, N, L]
    seeds, steps = torch.tensor([s.seed for s in segments], dtype=torch.int64), range(start, stop)
    for done in stacked_steps(problem, state, rows_of(controls, steps), steps, seeds):
        state = done.state
        if done.step in judged:
            with torch.no_grad():
                losses, scores = judge_mapped(problem, outer, state, done.row, seeds)
            totals = [
                (loss + a / len(judged), score + b / len(judged))
                for (loss, score), a, b in zip(totals, losses.tolist(), scores.tolist(), strict=True)
            ]
    return [Reached(stop, of_run(state, i), loss, score) for i, (loss, score) in enumerate(totals)]
