"""A prepared module in a plain loop under a schedule that listens, against the training loop of this package."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from metasched import Recipe, build_problem, hand_coded, prepare, progress_of_steps
from metasched.config.schema import Experiment
from metasched.core.randomness import derive_seed
from metasched.methods.config import MethodConfig
from metasched.network.playing import Player
from metasched.runs.config import RunConfig
from metasched.schedules.family import ScheduleFamily
from metasched.schedules.feedback import FeedbackSchedule
from metasched.tasks.config import TaskConfig
from metasched.training.loop import Stepped, take_steps
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.state import InnerProblem

STEPS, SEED = 12, 5
METHODS: dict[str, dict[str, Any]] = {
    "widths": {"name": "widths", "scale": "least_squares"},
    "inq": {"name": "inq"},
    "joint": {"name": "joint", "of": "widths+inq+rates", "scale": "least_squares", "granularity": "channel"},
    "learned": {"name": "widths", "scale": "learned"},
}


def problem_of(method: str, dtype: str = "float64") -> InnerProblem:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=8, steps=STEPS, batch=32, train=128, validation=16, test=16),
        method=MethodConfig(**METHODS[method]),
        optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.0),
        run=RunConfig(dtype=dtype),  # pyright: ignore[reportArgumentType]
    )
    return build_problem(experiment.problem).with_seed(SEED)


def schedule_of(problem: InnerProblem, gain: float = 1.0) -> FeedbackSchedule:
    controls, name = problem.network.method.controls, problem.network.method.controls[0].name
    base = hand_coded("inq")["inq_linear"] if name == "freeze_fraction" else hand_coded("widths")["widths_narrowing"]
    if len(controls) > 2:
        from metasched.schedules.table import joined_schedules

        method = MethodConfig(**METHODS["joint"])
        base = joined_schedules(("widths_narrowing", "inq_linear", "rates_rising"), method, "test")
    family = ScheduleFamily(controls, base, [c.name for c in controls], knots=7, layers=problem.network.layers)
    found = FeedbackSchedule(family)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for gains in found.gains.values():
            gains.copy_(gain * torch.randn(gains.shape, generator=draws, dtype=torch.float64))
    return found


def core(problem: InnerProblem, schedule: FeedbackSchedule) -> list[Stepped]:
    like = next(problem.network.module.parameters())
    with torch.no_grad():
        values = schedule(progress_of_steps(STEPS), problem.network.layers)
    controls = {name: v.to(like) for name, v in values.items()}
    first = {name: v[0] for name, v in controls.items()}
    return list(take_steps(problem, problem.initial(first), controls, range(STEPS)))


def own(problem: InnerProblem, schedule: Any, method: str) -> tuple[nn.Module, Player, torch.optim.Optimizer]:
    torch.manual_seed(derive_seed(SEED, "weights"))
    like = next(problem.network.module.parameters())
    model, x = problem.task.build().to(like), problem.task.batch(SEED, 0)[0]
    recipe = Recipe(MethodConfig(**METHODS[method]), redraw=True)
    module, player = prepare(model, recipe, x, schedule, STEPS, SEED)
    return module, player, torch.optim.SGD(module.parameters(), lr=0.1)


def one_step(module: nn.Module, player: Player, optimizer: torch.optim.Optimizer, problem: InnerProblem) -> float:
    x, y = problem.task.batch(SEED, player.position)
    loss = nn.functional.cross_entropy(module(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    player.step(loss)
    return float(loss.detach())


def row_of(player: Player, problem: InnerProblem) -> dict[str, list[float]]:
    controls = problem.network.method.controls
    return {c.name: [player.value(c.name, layer.name) for layer in player.layers] for c in controls}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", METHODS)
def test_a_plain_loop_plays_the_controls_of_the_inner_run_bit_for_bit(method: str, dtype: str) -> None:
    problem = problem_of(method, dtype)
    schedule = schedule_of(problem)
    steps, (module, player, optimizer) = core(problem, schedule), own(problem, schedule, method)
    with torch.no_grad():
        plain = schedule.base(progress_of_steps(STEPS), problem.network.layers)
    moved = 0.0
    for done in steps:
        row = row_of(player, problem)
        assert row == {name: v.tolist() for name, v in done.row.items()}, done.step
        moved += sum(float((v - plain[name][done.step].to(v)).abs().sum()) for name, v in done.row.items())
        assert one_step(module, player, optimizer, problem) == float(done.loss)
    assert moved > 0.1  # the run has been listened to
