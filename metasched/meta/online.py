"""Learning while training once: a run that adapts its own schedule by looking a few steps ahead.

Every m steps, from the state s_t that training has reached, the schedule's parameters theta are moved once:

    s_{t+w}     after w steps from s_t under c_theta(u_t), ..., c_theta(u_{t+w-1}), by the relaxed method
    theta    <- Adam(theta, clip(d loss(harden(s_{t+w}), held-out batch) / d theta))

and the next m steps are trained, hard, under the new values. A look-ahead sees the training batches and draws of the
very steps that follow; only what judges it is held out. What was played is history: a monotone control goes on from
its last played value p, c_t = min(c_theta(u_t), p) where it falls and the maximum where it rises. Where that holds a
value back it has no derivative.

The cost in plain runs, with b held-out examples and B training examples a step, is about

    1 + (3 w + 1 + b / B) / m

Biased towards short horizons (Wu et al. 2018, arXiv 1803.02021): what pays only after the window does not count.
Source: hypergradients in real time, Franceschi et al. 2017, arXiv 1703.01785, section 3.3; there the derivative is
carried through the whole run in forward mode, which costs as many times more as there are parameters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from metasched.config.schema import Experiment, ProblemConfig
from metasched.core.layer import Layer
from metasched.core.randomness import derive_seed
from metasched.engines.base import (
    Hypergradient,
    OuterLoss,
    control_gradient,
    pull_back,
)
from metasched.engines.unroll import unroll
from metasched.estimators.reverse import Floored
from metasched.meta.adam import Adam
from metasched.meta.config import MetaConfig, OnlineConfig
from metasched.meta.guards import MOST_BAD_STEPS, RunStopped, clip, keep, listed, update
from metasched.meta.start import learned_controls
from metasched.methods.base import Control
from metasched.network.flat import Tensors, rows
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.learnable import build_learnable
from metasched.tasks.base import Task, examples
from metasched.training.faults import locate
from metasched.training.loop import take_steps
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem, TrainingState

_SIGNS = {"nonincreasing": -1, "free": 0, "nondecreasing": 1}
_WINDOW_STEP = 3.0  # plain steps that a differentiated one costs; measured 2.2 to 2.9, on MLPs and small CNNs


class Adaptation(NamedTuple):
    """What one look-ahead and the steps after it did; logged as ``online/...``.

    Attributes:
        step: steps played, with those after it.
        loss, score: of the hardened network at the end of the window, on the held-out batch.
        gradient_norm: of the hypergradient, before clipping.
        clipped, skipped: whether the gradient was scaled down, and whether a number was not finite, so that nothing
            was updated.
        dead_layers: share of (step, layer) pairs of the window in which no gradient reaches the weights.
        inner_steps: training steps done, look-ahead included; the way back is not counted.
        train_loss: mean over the steps that were played.
        looking, playing: seconds, of the CPU where that is what trains.
        fault: numbers that were not finite; empty where all were.
    """

    step: int
    loss: float
    score: float
    gradient_norm: float
    clipped: bool
    skipped: bool
    dead_layers: float
    inner_steps: int
    train_loss: float
    looking: float
    playing: float
    fault: str = ""


class OnlineRun(NamedTuple):
    """The outcome.

    Attributes:
        controls: {control: [T, L]} as they were played, in float64.
        state: after the last step.
        history: one record for each look-ahead.
    """

    controls: Tensors
    state: TrainingState
    history: tuple[Adaptation, ...]

    @property
    def inner_steps(self) -> int:
        """Training steps done, those of the look-aheads included."""
        return sum(record.inner_steps for record in self.history)

    @property
    def cost(self) -> float:
        """Time in plain runs: all of it over that of the steps that were played."""
        playing = sum(record.playing for record in self.history)
        return 1 + sum(record.looking for record in self.history) / playing


class Onward(nn.Module):
    """What a schedule may still play after ``last``, {control: [L]}; empty before the first step."""

    def __init__(self, schedule: nn.Module, controls: Sequence[Control], last: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.schedule = schedule
        self.last = last
        self.directions = {control.name: control.direction for control in controls}

    def forward(self, progress: torch.Tensor, layers: Sequence[Layer]) -> Tensors:
        """Values {control: [T, L]} at progress [T]."""
        values = self.schedule(progress, layers)
        for name, last in self.last.items():
            sign = _SIGNS[self.directions[name]]
            # not clamp, which halves the derivative of a value that equals its bound, as all values of a plateau do
            values[name] = torch.where(sign * (values[name] - last) < 0, last, values[name])
        return values


def expected_cost(online: OnlineConfig, problem: InnerProblem) -> float:
    """The cost of a run in plain runs, as the module's docstring has it."""
    task = problem.task
    differentiated = _WINDOW_STEP * min(online.window, problem.steps)
    batch = examples(task.batch(problem.seed, 0))
    judging = examples(task.judged_on(held_out_size(online, task), problem.seed, 0).outer_batch()) / batch
    return 1 + (differentiated + 1 + judging) / online.every


def held_out_size(online: OnlineConfig, task: Task) -> int:
    """Held-out examples that judge a look-ahead, where the task can choose them."""
    return online.held_out or min(examples(task.batch(0, 0)), examples(task.outer_batch()))


class Setting(NamedTuple):
    """What online runs depend on, besides where they start.

    Attributes:
        problem: what is trained.
        online: when it looks ahead, and how far.
        meta: how it differentiates.
        schedule: what it learns.
        seed: of the experiment.
    """

    problem: ProblemConfig
    online: OnlineConfig
    meta: MetaConfig
    schedule: ScheduleConfig
    seed: int


def setting_of(experiment: Experiment) -> Setting:
    """What the online runs of an experiment depend on."""
    e = experiment
    return Setting(e.problem, e.online, e.meta, e.schedule, e.seed)


def train_online(
    setting: Setting, start: Schedule, seed: int, log: Callable[[Adaptation], None] | None = None
) -> OnlineRun:
    """Train once from a seed, under a schedule that starts at ``start`` and adapts itself; ``log`` gets each record.

    Raises:
        RunStopped: three look-aheads in a row changed nothing, because of numbers that are not finite.
    """
    config, online, meta, settings, own_seed = setting
    problem = build_problem(config).with_seed(seed)
    relaxed = build_problem(config, relaxation=meta.relaxation).with_seed(seed)
    layers, controls = problem.network.layers, problem.network.method.controls
    like = next(problem.network.module.parameters())
    learn = learned_controls(config.method.name, settings.learn, controls)
    schedule = build_learnable(settings, controls, start, learn, layers, derive_seed(own_seed, "schedule network"))
    optimizer = Adam(schedule.parameters(), lr=online.lr)
    outer, size = OuterLoss(meta.objective, meta.surrogate), held_out_size(online, problem.task)
    progress, clock = progress_of_steps(problem.steps), time.process_time if like.is_cpu else time.perf_counter
    state: TrainingState | None = None
    played: list[Tensors] = []
    history: list[Adaptation] = []
    bad = 0  # look-aheads in a row without an update
    for step in range(0, problem.steps, online.every):
        began = clock()
        onward = Onward(schedule, controls, rows(played[-1], -1) if played else {})
        window = range(step, min(step + online.window, problem.steps))
        judged = replace(relaxed, task=relaxed.task.judged_on(size, seed, step))
        found = look_ahead(judged, state, Floored(onward, controls, meta.noise_floor), window, outer)
        finite, clipped, faults = bool(keep([found])), False, found.diagnostics.faults
        if finite:
            gradient, clipped = clip(found.gradient, meta.clip)
            if fault := update(schedule, optimizer, gradient, problem.steps, layers):
                finite, faults = False, (*faults, fault)
        bad = 0 if finite else bad + 1
        looked = clock()
        steps = range(step, min(step + online.every, problem.steps))
        with torch.no_grad():
            values = onward(progress[steps.start : steps.stop], layers)
        played_now = {name: v.to(like) for name, v in values.items()}
        state = state or problem.initial(rows(played_now, 0))
        losses = []
        for done in take_steps(problem, state, played_now, steps):
            state = done.state
            losses.append(done.loss)
        played.append(values)
        record = Adaptation(
            step=step + len(losses),
            loss=found.loss,
            score=found.diagnostics.score,
            gradient_norm=found.diagnostics.gradient_norm,
            clipped=finite and clipped,
            skipped=not finite,
            dead_layers=found.diagnostics.dead_layers,
            inner_steps=len(window) + len(losses),
            train_loss=float(torch.stack(losses).mean()),  # waits for the device, before the clock is read
            looking=looked - began,
            playing=clock() - looked,
            fault=listed(faults),
        )
        history.append(record)
        if log is not None:
            log(record)
        if bad == MOST_BAD_STEPS:
            why = f"no update in {bad} look-aheads in a row, because numbers are not finite ({record.fault})"
            raise RunStopped(f"step {record.step} of {config.task.label}", why, "lower online.lr or optimizer.lr")
    assert state is not None
    return OnlineRun({name: torch.cat([v[name] for v in played]) for name in played[0]}, state, tuple(history))


def look_ahead(
    problem: InnerProblem,
    state: TrainingState | None,
    schedule: nn.Module,
    window: range,
    outer: OuterLoss,
) -> Hypergradient:
    """The hypergradient of a schedule over a window of steps from a state (None: from the run's beginning)."""
    values = schedule(progress_of_steps(problem.steps)[window.start : window.stop], problem.network.layers)
    found = control_gradient(partial(unroll, since=state, window=window), problem, values, outer)
    if not math.isfinite(found.loss):
        before = {name: v[:1].expand(window.start, -1) for name, v in values.items()}
        whole = {name: torch.cat([before[name], v]) for name, v in values.items()}
        if fault := locate(problem, whole, state, window):
            found = found._replace(faults=(fault,))
    else:  # steps are counted from the beginning of the run
        found = found._replace(faults=tuple(f._replace(step=(f.step or 0) + window.start) for f in found.faults))
    return pull_back(schedule, values, found)
