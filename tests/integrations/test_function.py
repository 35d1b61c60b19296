"""The function of a step is what the player gives, in any order, of one layer or of their mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metasched.core.errors import MetaschedError
from metasched.exchange.integrations.function import step_function
from metasched.exchange.player import SchedulePlayer

STEPS = 9


def test_it_is_the_players_value_in_any_order(schedule: Path) -> None:
    player = SchedulePlayer(schedule, STEPS)
    first, mean = step_function(player, "weight_noise", "0"), step_function(player, "weight_noise")
    wanted = [SchedulePlayer(schedule, STEPS).at(step) for step in range(STEPS)]
    for step in (5, 0, 8, 5, 3):
        own, other = (wanted[step][layer]["weight_noise"] for layer in ("0", "2"))
        assert first(step) == own
        assert mean(step) == (own + other) / 2
    assert any(first(step) != mean(step) for step in range(STEPS))
    assert player.state_dict() == {"step": 0}


def test_it_stays_at_the_last_value(schedule: Path) -> None:
    fraction = step_function(SchedulePlayer(schedule, STEPS), "freeze_fraction")
    assert fraction(STEPS - 1) == fraction(10 * STEPS) == 1.0


def test_it_drives_the_learning_rate_of_torch_across_a_resume(schedule: Path) -> None:
    factor = step_function(SchedulePlayer(schedule, STEPS), "weight_noise")

    def build() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    optimizer, scheduler = build()
    rates = []
    for step in range(STEPS):
        if step == 4:
            saved = optimizer.state_dict(), scheduler.state_dict()
            optimizer, scheduler = build()
            optimizer.load_state_dict(saved[0])
            scheduler.load_state_dict(saved[1])
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [factor(step) for step in range(STEPS)]


@pytest.mark.parametrize(
    ("control", "layer", "line"),
    [
        ("weight_nois", None, r"^control: unknown name 'weight_nois'; did you mean 'weight_noise'\?"),
        ("weight_noise", "conv", r"^layer: unknown name 'conv'; Known: 0, 2"),
    ],
)
def test_unknown_names_are_one_line(schedule: Path, control: str, layer: str | None, line: str) -> None:
    with pytest.raises(MetaschedError, match=line):
        step_function(SchedulePlayer(schedule, STEPS), control, layer)


def test_negative_steps_are_refused(schedule: Path) -> None:
    with pytest.raises(MetaschedError, match=r"^step: must be at least 0, got -1"):
        step_function(SchedulePlayer(schedule, STEPS), "weight_noise")(-1)
