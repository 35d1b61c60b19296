"""Inner runs with planted answers, and a schedule that is its parameters: oracles for what is made of such answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from metasched.config.schema import Experiment
from metasched.engines.base import ControlGradient
from metasched.methods.config import MethodConfig
from metasched.runs.local import Judged, Run
from metasched.tasks.config import TaskConfig
from metasched.training.problem import build_problem

STEPS = 12
_TINY = Experiment(
    task=TaskConfig(model="mlp", width=2, train=16, validation=8, batch=4), method=MethodConfig(name="ana")
)


class Steps(nn.Module):
    """One control in one layer: a parameter for each step, in two tensors of different scales."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Parameter(torch.linspace(0.5, 0.3, STEPS // 2))
        self.late = nn.Parameter(torch.linspace(0.3, 0.1, STEPS // 2))

    def scales(self) -> dict[str, float]:
        return {"early": 2.0}  # and 1 for the other

    def forward(self, progress: torch.Tensor, layers: Sequence[Any]) -> dict[str, torch.Tensor]:
        return {"level": torch.cat([self.early, self.late])[:, None]}


class PlantedRuns:
    """``slope(seed)`` [STEPS] is the derivative of a run, ``loss(controls [STEPS], seed)`` what a plain run is judged.

    Keeps how many runs of each kind it was asked for.
    """

    problem = replace(build_problem(_TINY.problem), steps=STEPS)

    def __init__(self, slope: Callable[[int], torch.Tensor], loss: Callable[[torch.Tensor, int], float]) -> None:
        self.slope, self.loss = slope, loss
        self.exact = self.plain = 0

    def gradients(self, runs: Sequence[Run]) -> list[ControlGradient]:
        self.exact += len(runs)
        found = [self.slope(run.seed)[:, None] for run in runs]
        return [ControlGradient(1.0, 0.5, {"level": g}, int((~g.isfinite()).sum()), 0.0, 0.0) for g in found]

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        self.plain += len(runs)
        return [Judged(self.loss(run.controls["level"][:, 0], run.seed), 0.25) for run in runs]

    def slopes(self, runs: Any) -> Any:
        raise AssertionError("not asked for")

    def segments(self, segments: Any) -> Any:
        raise AssertionError("not asked for")


@pytest.fixture
def planted() -> type[PlantedRuns]:
    return PlantedRuns


@pytest.fixture
def schedule() -> Steps:
    return Steps()
