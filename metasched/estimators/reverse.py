"""The estimator by reverse mode: each inner run is differentiated in its controls, then pulled back to the schedule.

    g_r = (d controls / d theta)^T (d outer loss(run r) / d controls),   one g_r for each run

Exact for the relaxed problem with the noise floor, by any of the engines of UNROLLS (``truncated`` is biased towards
short horizons). Where the inner run is chaotic the exact derivative is of no use (docs/hypergradients.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from metasched.config.schema import MetaConfig
from metasched.core.layer import Layer
from metasched.engines.base import ControlGradient, Hypergradient, pull_back
from metasched.estimators.base import PLACE, Estimate, State, check_like
from metasched.runs.local import Run, Runs
from metasched.schedules.base import progress_of_steps


@dataclass(frozen=True)
class Reverse:
    """One hypergradient for each seed.

    Attributes:
        noise_floor: noise never falls below this while learning, in quanta.
    """

    noise_floor: float

    def begin(self, schedule: nn.Module, runs: Runs) -> State:
        """Nothing is carried on."""
        return {}

    def check(self, schedule: nn.Module, runs: Runs, num_runs: int, state: State) -> None:
        """See Estimator."""
        check_like(PLACE, state, {})

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """See Estimator."""
        found = differentiate(schedule, runs, seeds, self.noise_floor).found
        return Estimate(found, state, len(seeds) * runs.problem.steps, {})


class Differentiated(NamedTuple):
    """Inner runs with their derivative: in the controls, and pulled back to the schedule; one of each for each run."""

    in_controls: list[ControlGradient]
    found: list[Hypergradient]


def differentiate(schedule: nn.Module, runs: Runs, seeds: Sequence[int], noise_floor: float) -> Differentiated:
    """One reverse pass for each seed, under the schedule with its noise floor."""
    problem = runs.problem
    floored = Floored(schedule, noise_floor)
    values = floored(progress_of_steps(problem.steps), problem.network.layers)
    controls = {name: v.detach() for name, v in values.items()}
    in_controls = runs.gradients([Run(controls, seed) for seed in seeds])
    return Differentiated(in_controls, [pull_back(floored, values, f) for f in in_controls])


class Floored(nn.Module):
    """A schedule whose ``noise_scale`` stays at or above a floor; its parameters are the schedule's own.

    Hypergradients through noise narrower than about a tenth of a quantum explode.
    """

    def __init__(self, schedule: nn.Module, floor: float) -> None:
        super().__init__()
        self.schedule = schedule
        self.floor = floor

    def forward(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values {control: [T, L]} at progress [T]."""
        values = self.schedule(progress, layers)
        if "noise_scale" in values:
            values["noise_scale"] = values["noise_scale"].clamp_min(self.floor)
        return values


def build(meta: MetaConfig) -> Reverse:
    """As configured."""
    return Reverse(meta.noise_floor)
