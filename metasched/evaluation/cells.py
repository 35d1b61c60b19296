"""One cell of a comparison: train under one schedule from one seed, harden, and score on one split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from metasched.config import Experiment
from metasched.network import Tensors
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.training.loop import hardened_score
from metasched.training.mapped import train_each
from metasched.training.problem import build_problem

Part = Literal["validation", "test"]


def cell_score(experiment: Experiment, controls: Tensors, seed: int, steps: int, part: Part) -> float:
    """Score of the hardened network after ``steps`` steps under the controls ({control: [T, L]}).

    The method is played hard (no relaxed mask). A function of its arguments alone: runs in any process.
    """
    return cell_scores(experiment, controls, [seed], steps, part)[0]


def cell_scores(experiment: Experiment, controls: Tensors, seeds: Sequence[int], steps: int, part: Part) -> list[float]:
    """``cell_score`` for each seed, trained at once where that pays (see training/mapped.py)."""
    problem = build_problem(experiment, steps=steps)
    like = next(problem.network.module.parameters())
    states = train_each(problem, {name: v.to(like) for name, v in controls.items()}, seeds)
    split = problem.task.validation if part == "validation" else problem.task.test
    return [hardened_score(problem.with_seed(seed), state, split) for seed, state in zip(seeds, states, strict=True)]


def played(experiment: Experiment, schedule: Schedule, steps: int) -> Tensors:
    """The control values {control: [T, L]} that a schedule gives this experiment's network at a horizon, in float64."""
    layers = build_problem(experiment, steps=steps).network.layers
    return {name: v.detach() for name, v in schedule(progress_of_steps(steps), layers).items()}
