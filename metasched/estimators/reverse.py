"""The estimator by reverse mode: each inner run is differentiated in its controls, then pulled back to the schedule.

    g_r = (d controls / d theta)^T (d outer loss(run r) / d controls),   one g_r for each run

Exact for the relaxed problem with the noise floor, by any of the engines of UNROLLS. Where the inner run is
chaotic the exact derivative is of no use (docs/hypergradients.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from metasched.core.layer import Layer
from metasched.engines.base import ControlGradient, Hypergradient, pull_back
from metasched.estimators.base import Estimate, State, Stateless
from metasched.meta.config import MetaConfig
from metasched.methods.base import Control
from metasched.runs.local import Run, Runs
from metasched.schedules.base import progress_of_steps


@dataclass(frozen=True)
class Reverse(Stateless):
    """One hypergradient for each seed.

    Attributes:
        noise_floor: lowest value of controls that declare one while learning, in place of theirs; None: theirs.
    """

    noise_floor: float | None

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """See Estimator."""
        found = differentiate(schedule, runs, seeds, self.noise_floor).found
        return Estimate(found, state, len(seeds) * runs.problem.steps, {})


class Differentiated(NamedTuple):
    """Inner runs with their derivative: in the controls, and pulled back to the schedule; one of each for each run."""

    in_controls: list[ControlGradient]
    found: list[Hypergradient]


def differentiate(schedule: nn.Module, runs: Runs, seeds: Sequence[int], noise_floor: float | None) -> Differentiated:
    """One reverse pass for each seed, under the schedule with its noise floor."""
    problem = runs.problem
    floored = Floored(schedule, problem.network.method.controls, noise_floor)
    values = floored(progress_of_steps(problem.steps), problem.network.layers)
    controls = {name: v.detach() for name, v in values.items()}
    in_controls = runs.gradients([Run(controls, seed) for seed in seeds])
    return Differentiated(in_controls, [pull_back(floored, values, f) for f in in_controls])


class Floored(nn.Module):
    """A schedule of which the controls with a ``learning_floor`` stay at or above it; its parameters are its own.

    Args:
        schedule: any.
        controls: of the method.
        floor: for all controls that declare one, in place of theirs; None: theirs.
    """

    def __init__(self, schedule: nn.Module, controls: Sequence[Control], floor: float | None) -> None:
        super().__init__()
        self.schedule = schedule
        own = {c.name: c.learning_floor for c in controls if c.learning_floor is not None}
        self.floors = {name: value if floor is None else floor for name, value in own.items()}

    def forward(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values {control: [T, L]} at progress [T]."""
        values = self.schedule(progress, layers)
        return {n: v.clamp_min(self.floors[n]) if n in self.floors else v for n, v in values.items()}


def build(meta: MetaConfig) -> Reverse:
    """As configured."""
    return Reverse(meta.noise_floor)
