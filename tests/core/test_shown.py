"""How objects and errors show themselves in a session or a notebook."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import metasched
from metasched import MethodConfig, Recipe, Rule
from metasched.config.load import experiment_of
from metasched.config.schema import Experiment

RECIPES = [
    Recipe(),
    Recipe("joint", of="widths+rates", scale="least_squares", granularity="channel"),
    Recipe("inq", [Rule("0", quantize=False)], last=True),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_what_makes_it_again(recipe: Recipe) -> None:
    assert eval(repr(recipe), {"Recipe": Recipe, "Rule": Rule}) == recipe
    assert len(repr(recipe)) < 100


def test_an_experiment_is_what_differs_from_the_defaults() -> None:
    assert repr(Experiment()) == "Experiment()"
    shown = repr(experiment_of({"seed": 3, "meta": {"steps": 7}, "method": MethodConfig(name="inq")}))
    assert shown.startswith("Experiment(seed=3, method=") and "meta=MetaConfig(steps=7)" in shown


def _player() -> Any:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    return metasched.prepare(model, "widths", torch.zeros(1, 4), "widths_narrowing", total_steps=5)[1]


SHOWN: list[tuple[Callable[[], Any], str]] = [
    (lambda: metasched.load("widths_narrowing"), "HandCoded(widths_narrowing: method widths)"),
    (lambda: metasched.load("digits_inq"), "PlayedSchedule(digits_inq: learned, method inq, 3 layers)"),
    (lambda: metasched.METHODS["ste"], "MethodSpec(ste: straight-through estimator: no schedule)"),
    (lambda: metasched.list_schedules("inq")[0], "ShippedSchedule(cifar10_inq_es: learned on CIFAR-10, three conv"),
    (lambda: metasched.list_schedules("rates")[0], "ShippedSchedule(rates_rising: hand-coded, method rates)"),
    (_player, "Player(step 0 of 5, 1 layers)"),
    (
        lambda: metasched.SchedulePlayer("digits_inq", 5),
        "SchedulePlayer(PlayedSchedule(digits_inq: learned, ",
    ),
]


@pytest.mark.parametrize(("make", "begins"), SHOWN)
def test_objects_are_a_short_line(make: Callable[[], Any], begins: str) -> None:
    shown = repr(make())
    assert shown.startswith(begins)
    assert len(shown) < 120 and "\n" not in shown and " at 0x" not in shown


def test_a_notebook_draws_a_schedule() -> None:
    schedule: Any = metasched.load("digits_main")
    html = schedule._repr_html_()
    assert html.startswith("<pre") and "weight_width in [" in html and "█" in html and "\x1b" not in html


def _raised(call: Callable[[], object]) -> Any:
    with pytest.raises(metasched.MetaschedError) as caught:
        call()
    return caught.value


def test_a_notebook_shows_the_users_lines_and_the_message_of_a_mistake() -> None:
    source = "def mine():\n    return metasched.load('widths_narowing')\n"
    names: dict[str, Any] = {"metasched": metasched}
    exec(compile(source, "<cell>", "exec"), names)
    error = _raised(names["mine"])
    lines = error._render_traceback_()
    assert "cell, line 2, in mine:" in lines
    assert lines[-1] == f"MetaschedError: {error}" and "did you mean 'widths_narrowing'?" in lines[-1]
    assert not any("metasched/exchange" in line for line in lines)
    assert any("metasched/exchange" in line for line in traceback.format_exception(error))  # elsewhere all is there


def test_a_notebook_shows_where_code_of_the_user_failed() -> None:
    def fit(model: Any, player: Any, seed: int, steps: int) -> float:
        raise KeyError("of mine")

    def study() -> None:
        model = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))  # noqa: E731
        made = metasched.Study(model, "widths", fit, example=torch.zeros(1, 4), steps=3, quiet=True)
        assert re.fullmatch(r"Study\('.*': widths, 3 steps, 0 runs of fit, 0 schedules found\)", repr(made))
        made.optimize(runs=40)

    lines = _raised(study)._render_traceback_()
    assert "    made.optimize(runs=40)" in lines and '    raise KeyError("of mine")' in lines
    assert "KeyError: 'of mine'" in lines and lines[-1].startswith("MetaschedError: ")
