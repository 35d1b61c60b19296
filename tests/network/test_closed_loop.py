"""A prepared module in a plain loop under a closed-loop schedule, against the training loop of this package."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from metasched import MetaschedError, Recipe, SchedulePlayer, build_problem, hand_coded, prepare, progress_of_steps
from metasched.config.schema import Experiment
from metasched.core.randomness import derive_seed
from metasched.exchange.integrations.stepping import follow
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
    assert moved > 0.1  # the run has been measured


def test_gains_of_0_are_the_open_loop_bit_for_bit() -> None:
    problem = problem_of("joint")
    schedule = schedule_of(problem, gain=0.0)
    one, other = own(problem, schedule, "joint"), own(problem, schedule.base, "joint")
    assert one[1].closed_loop and not other[1].closed_loop
    for _ in range(STEPS):
        assert row_of(one[1], problem) == row_of(other[1], problem)
        assert one_step(*one, problem) == one_step(*other, problem)  # an open-loop player takes a loss as well


@pytest.mark.parametrize("method", ["widths", "joint"])
@pytest.mark.parametrize("player_first", [False, True])
def test_a_loop_that_is_stopped_goes_on_with_the_same_bits(method: str, player_first: bool) -> None:
    problem = problem_of(method)
    schedule = schedule_of(problem)
    whole, first = own(problem, schedule, method), own(problem, schedule, method)
    for _ in range(5):
        assert one_step(*whole, problem) == one_step(*first, problem)
    module, player, optimizer = first
    saved = module.state_dict(), json.loads(json.dumps(player.state_dict())), optimizer.state_dict()
    again = own(problem, schedule, method)
    for i in (1, 0, 2) if player_first else (0, 1, 2):
        again[i].load_state_dict(saved[i])
    for _ in range(STEPS - 5):
        assert row_of(whole[1], problem) == row_of(again[1], problem)
        assert one_step(*whole, problem) == one_step(*again, problem)
    assert whole[1].state_dict() == again[1].state_dict()


def test_after_the_run_the_values_do_not_change() -> None:
    problem = problem_of("widths")
    loop = own(problem, schedule_of(problem), "widths")
    for _ in range(STEPS - 1):
        one_step(*loop, problem)
    last = row_of(loop[1], problem)
    for _ in range(4):
        one_step(*loop, problem)
        assert row_of(loop[1], problem) == last


def test_a_loss_that_is_missing_or_several_is_refused_before_anything_changes() -> None:
    problem = problem_of("widths")
    _, player, _ = own(problem, schedule_of(problem), "widths")
    with pytest.raises(MetaschedError, match=r"loss: is not given to player\.step\(\)"):
        player.step()
    with pytest.raises(MetaschedError, match="loss: has 2 elements"):
        player.step(torch.ones(2))
    assert player.position == 0 and player.state_dict()["measured"] == {}
    player.step(1.0)
    assert player.state_dict()["measured"]["loss_fast"] == 1.0


def test_states_that_do_not_fit_are_refused_in_one_line() -> None:
    problem = problem_of("widths")
    schedule = schedule_of(problem)
    (_, closed, _), (_, plain, _) = own(problem, schedule, "widths"), own(problem, schedule.base, "widths")
    closed.step(1.0)
    plain.step()
    state = closed.state_dict()
    with pytest.raises(MetaschedError, match="is of a closed-loop schedule"):
        plain.load_state_dict(state)
    with pytest.raises(MetaschedError, match="is of an open-loop schedule"):
        closed.load_state_dict(plain.state_dict())
    measured = state["measured"]
    for wrong in (
        {},
        None,
        [],
        {**measured, "loss_fast": "1"},
        {**measured, "flips": [0.0]},
        {**measured, "more": 1.0},
    ):
        with pytest.raises(MetaschedError, match="state_dict: measured"):
            closed.load_state_dict({**state, "measured": wrong})
    closed.load_state_dict(state)


def test_what_cannot_give_a_loss_says_so() -> None:
    problem = problem_of("widths")
    schedule = schedule_of(problem)
    module, player, optimizer = own(problem, schedule, "widths")
    with pytest.raises(MetaschedError, match="is closed-loop"):
        follow(player, module, optimizer)
    with pytest.raises(MetaschedError, match="sees neither the loss nor the weights"):
        SchedulePlayer(schedule, STEPS, problem.network.layers)
