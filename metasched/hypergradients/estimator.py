"""The contract of an estimator: a schedule and inner runs in, hypergradients out; what it carries on is explicit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import nn

from metasched.hypergradients.base import Hypergradient
from metasched.hypergradients.runs import Runs

State = Mapping[str, torch.Tensor]  # flat, so that it can be saved and resumed exactly


class Estimate(NamedTuple):
    """What an estimator found in one outer step.

    Attributes:
        found: hypergradients whose mean is the estimate: one for each inner run, or one for a whole population.
        state: to be given to the next call.
        inner_steps: training steps done, each counted once; the way back is not counted.
        notes: what it has to say about itself, logged as ``estimator/<name>``.
        line: what a person should read now, such as a change of mind.
    """

    found: list[Hypergradient]
    state: State
    inner_steps: int
    notes: dict[str, float]
    line: str | None = None


class Estimator(Protocol):
    """A way to compute a hypergradient. Implementations are frozen dataclasses: their fields are their settings."""

    def begin(self, schedule: nn.Module, runs: Runs) -> State:
        """The state before the first estimate; empty for those that carry nothing on."""
        ...

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """The gradient of the outer loss in the schedule's parameters.

        Args:
            schedule: what is differentiated, at its present parameters.
            runs: where inner runs are done.
            seeds: one for each inner run or antithetic pair; all random numbers follow from them.
            state: what the last call (or ``begin``) gave.
        """
        ...
