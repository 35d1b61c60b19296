"""Learning-rate curves against torch.optim.lr_scheduler, over whole runs of torch.optim."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from metasched.schedules.base import progress_of_steps
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.decays import DECAYS, lr_factor, warmup_steps
from metasched.training.optimizers.recipe import learning_rates


def scheduler_of(config: OptimizerConfig, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """What torch.optim.lr_scheduler has for the whole of a config."""
    rise = warmup_steps(config.warmup, steps)
    rest = steps - rise
    decay: LRScheduler
    if config.decay == "cosine":
        decay = CosineAnnealingLR(optimizer, T_max=rest - 1)
    elif config.decay == "linear":
        decay = LinearLR(optimizer, 1.0, 0.0, total_iters=rest - 1)
    elif config.decay == "step":
        decay = StepLR(optimizer, step_size=round(config.step_every * rest), gamma=config.step_gamma)
    elif config.decay == "one_cycle":
        decay = OneCycleLR(
            optimizer,
            max_lr=config.lr,
            total_steps=steps,
            pct_start=config.pct_start,
            div_factor=config.div_factor,
            final_div_factor=config.final_div_factor,
            cycle_momentum=False,
        )
    else:
        decay = ConstantLR(optimizer, factor=1.0)
    if not rise:
        return decay
    start = LinearLR(optimizer, start_factor=1 / (rise + 1), total_iters=rise)
    return SequentialLR(optimizer, [start, decay], milestones=[rise])


CASES: list[dict[str, Any]] = [
    *[{"decay": decay, "warmup": warmup} for decay in DECAYS for warmup in (0.0, 0.25) if decay != "one_cycle"],
    {"decay": "step", "step_every": 0.15, "step_gamma": 0.7},
    {"decay": "one_cycle"},
    {"decay": "one_cycle", "pct_start": 0.55, "div_factor": 4.0, "final_div_factor": 10.0},
    {"decay": "cosine", "warmup": 0.8},
]


@pytest.mark.parametrize("steps", [11, 40])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rates_and_weights_are_those_of_torch(case: dict[str, Any], steps: int) -> None:
    config = OptimizerConfig(name="sgd", lr=0.2, **case)
    rates = learning_rates(config, steps)
    targets = torch.randn(steps, 3, generator=torch.Generator().manual_seed(1))
    ours = torch.zeros(3)
    theirs = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([theirs], lr=config.lr)
    scheduler = scheduler_of(config, optimizer, steps)
    for t in range(steps):
        assert rates[t] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-15), t
        ours = ours - rates[t] * (ours - targets[t])
        optimizer.zero_grad()
        (0.5 * (theirs - targets[t]).square().sum()).backward()
        optimizer.step()
        if t + 1 < steps:
            scheduler.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_the_first_three_curves_keep_their_bits(steps: int) -> None:
    """As functions of progress, which is how every file of an earlier release means them."""
    old = {
        "constant": lambda u: 1.0,
        "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
        "linear": lambda u: 1 - u,
    }
    for decay, factor in old.items():
        expected = tuple(0.3 * factor(float(u)) for u in progress_of_steps(steps))
        assert learning_rates(OptimizerConfig(**{"lr": 0.3, "decay": decay}), steps) == expected


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
def test_short_runs_have_rates(decay: str, steps: int) -> None:
    """Also where a phase has no step: 3 steps of a rise over 1/3 leave it one, which is its top."""
    for share in (1e-6, 1 / 3, 0.999):
        config = OptimizerConfig(**{"decay": decay, "pct_start": share, "step_every": share, "warmup": share})
        factors = [lr_factor(config, t, steps) for t in range(steps)]
        assert all(0 <= f <= 1 for f in factors), factors
    assert lr_factor(OptimizerConfig(decay="one_cycle", pct_start=1 / 3), 0, 3) == 1.0


def test_a_warm_up_rises_in_equal_steps_and_reaches_the_rate_where_the_decay_starts() -> None:
    rates = learning_rates(OptimizerConfig(lr=1.0, warmup=0.3), 10)
    assert rates == pytest.approx((0.25, 0.5, 0.75, *[1.0] * 7), rel=1e-15)
