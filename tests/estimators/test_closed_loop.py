"""Evolution strategies on a closed-loop schedule: they see its gains as further numbers, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch

from metasched.core.layer import Layer
from metasched.estimators import ESTIMATORS
from metasched.estimators.es import antithetic_pairs
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.runs.local import Judged, Run
from metasched.schedules.base import progress_of_steps
from metasched.schedules.family import ScheduleFamily
from metasched.schedules.feedback import FeedbackSchedule
from metasched.schedules.table import hand_coded

STEPS = 9
LAYERS = tuple(Layer(f"layer{i}", i / 2, "conv", "weight+activation", 9, 90, 2.0) for i in range(3))


class Linear:
    """Runs whose loss is linear in all values and gains of the schedule: its slopes have no error."""

    problem: Any = SimpleNamespace(steps=STEPS, network=SimpleNamespace(layers=LAYERS))

    def __init__(self, slopes: dict[str, torch.Tensor]) -> None:
        self.slopes = slopes

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        return [Judged(float(sum((self.slopes[n] * v).sum() for n, v in run.controls.items())), 0.0) for run in runs]


def test_the_estimate_is_the_gradient_in_the_mean() -> None:
    controls = build_method(MethodConfig(name="widths")).controls
    base = hand_coded("widths")["widths_narrowing"]
    schedule = FeedbackSchedule(ScheduleFamily(controls, base, ["weight_width"], knots=5, layers=LAYERS))
    for p in schedule.base.parameters():  # the loss is not linear in these
        p.requires_grad_(False)
    values = schedule(progress_of_steps(STEPS), LAYERS)
    draws = torch.Generator().manual_seed(0)
    slopes = {name: torch.randn(v.shape, generator=draws, dtype=v.dtype) for name, v in values.items() if ":" in name}
    zeros = {name: torch.zeros_like(v) for name, v in values.items() if ":" not in name}
    loss = sum((slopes[name] * values[name]).sum() for name in slopes)
    (exact,) = torch.autograd.grad(cast(torch.Tensor, loss), [schedule.gains["weight_width"]])
    at = [name for name, _ in schedule.named_parameters()].index("gains.weight_width")
    found = antithetic_pairs(schedule, cast(Any, Linear({**slopes, **zeros})), list(range(300)), 0.5)
    terms = torch.stack([term[at] for term in found.terms])
    error = terms.std(0) / len(terms) ** 0.5
    assert bool(((terms.mean(0) - exact).abs() < 4 * error).all())
    assert bool((exact.abs() > 4 * error).any())


def test_the_table_says_who_can() -> None:
    assert [name for name, row in ESTIMATORS.items() if row.feedback] == ["es"]
