"""The features of a task that is trained, as schedules that are learned over many tasks see them (core/features.py)."""

from __future__ import annotations

import torch

from metasched.config.schema import ProblemConfig
from metasched.core.features import features_of
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem


def features_of_problem(config: ProblemConfig, steps: int | None = None) -> dict[str, float]:
    """The features of an experiment's task.

    Args:
        config: what it depends on.
        steps: horizon, if not the configured one.
    """
    return features_of_inner(build_problem(config, steps=steps))


def features_of_inner(problem: InnerProblem) -> dict[str, float]:
    """The features of a problem, at its horizon."""
    return features_of(
        problem.network.layers,
        problem.steps,
        rate=float(torch.as_tensor(problem.hyper["lr"]).max()),
        batches_per_epoch=problem.task.batches_per_epoch,
        pretrained=problem.task.initial() is not None,
    )
