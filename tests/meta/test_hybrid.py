"""The hybrid: a search over few numbers, then hypergradients from what it found, in one run and one account."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import metasched.commands.train
from metasched.commands.train import train
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.evaluation.config import CompareConfig
from metasched.exchange.schedule_file import read_schedule
from metasched.io.run_folder import RunFolder
from metasched.meta.config import MetaConfig
from metasched.meta.hybrid import check_search, searched_first
from metasched.meta.start import Start
from metasched.methods.config import MethodConfig
from metasched.runs.config import RunConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.table import hand_coded
from metasched.search.config import TuneConfig
from metasched.tasks.config import TaskConfig
from metasched.tracking.config import TrackingConfig
from metasched.tracking.console import open_console
from metasched.tracking.tracker import Memory
from metasched.training.problem import build_problem

pytest.importorskip("optuna", reason="optional: tuning")

STEPS = 4
EXPERIMENT = Experiment(
    task=TaskConfig(model="mlp", width=3, steps=STEPS, batch=16, train=64, validation=16, test=16),
    method=MethodConfig(name="widths", scale="least_squares"),
    schedule=ScheduleConfig(start="widths_constant_100", knots=5, hidden=4),
    meta=MetaConfig(steps=2, runs=1, search_steps=80, search_numbers=4, confirm_runs=2),
    tune=TuneConfig(search="tpe", runs=1, finalists=2, final_runs=2),
    compare=CompareConfig(seeds=2, baselines=()),
    tracking=TrackingConfig(wandb="disabled"),
    run=RunConfig(workers=1),
)
BASE = hand_coded("widths")["widths_constant_100"]


class Scored:
    """A Mapper that scores a schedule by a formula and counts the steps that it was asked for."""

    workers = 1

    def __init__(self, score: Callable[[dict[str, torch.Tensor]], float]) -> None:
        self.score, self.steps = score, 0

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[list[float]]:
        for _, controls, seeds, steps, part in arguments:
            assert part == "validation"
            self.steps += steps * len(seeds)
            yield [self.score(controls)] * len(seeds)


def width_at_the_end(controls: dict[str, torch.Tensor]) -> float:
    return float(controls["weight_width"][-1].mean())


def found(score: Callable[[dict[str, torch.Tensor]], float], of: Experiment = EXPERIMENT) -> tuple[Start, Scored]:
    pool, learn = Scored(score), ["weight_width", "activation_width"]
    check_search(of, learn)
    start = searched_first(of, Start("base", BASE, 7), learn, pool, Memory(), open_console(io.StringIO()))
    return start, pool


def values(schedule: Any) -> dict[str, torch.Tensor]:
    return schedule(progress_of_steps(STEPS), build_problem(EXPERIMENT.problem).network.layers)


@pytest.mark.parametrize("kind", ["network", "family"])
def test_learning_starts_at_the_best_candidate_and_its_steps_are_counted(kind: Any) -> None:
    of = replace(EXPERIMENT, schedule=replace(EXPERIMENT.schedule, kind=kind))
    start, pool = found(lambda controls: -width_at_the_end(controls), of)
    assert width_at_the_end(values(start.first)) < 0.7 < width_at_the_end(values(start.schedule))
    assert start.schedule is BASE and start.searched is not None
    assert start.searched.spent.by == "tpe" and start.searched.spent.inner_steps == pool.steps <= 80
    account = [(spent.by, spent.inner_steps) for spent in start.spent("sweep", 100, confirming=5)]
    assert account == [("best", 7), ("tpe", pool.steps), ("sweep", 100), ("confirm", 5)]


def test_where_no_candidate_is_better_learning_starts_at_the_start_itself() -> None:
    start, _ = found(lambda controls: -abs(width_at_the_end(controls) - width_at_the_end(values(BASE))))
    assert start.first is BASE


def test_without_a_budget_nothing_is_searched() -> None:
    none = replace(EXPERIMENT, meta=replace(EXPERIMENT.meta, search_steps=0))
    start, pool = found(lambda controls: 0.0, none)
    assert start == Start("base", BASE, 7) and start.first is BASE and pool.steps == 0


@pytest.mark.parametrize(
    ("sections", "learn", "said"),
    [
        ({"tune": TuneConfig(search="pbt")}, ["weight_width"], "tune.search is pbt, which trains many; set"),
        ({"meta": MetaConfig(steps=0, search_steps=80)}, ["weight_width"], "because meta.steps is 0; raise meta.steps"),
        ({"meta": MetaConfig(search_steps=10)}, ["weight_width"], "10 steps leave nothing for the search"),
        ({}, [], "nothing to search: no control of widths is learned; set it to 0"),
    ],
)
def test_a_search_that_makes_no_sense_is_one_line(sections: dict[str, Any], learn: list[str], said: str) -> None:
    with pytest.raises(MetaschedError, match=f"^meta.search_steps: .*{said}") as caught:
        check_search(replace(EXPERIMENT, **sections), learn)
    assert "\n" not in str(caught.value)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_command_searches_and_learns_and_a_stopped_run_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = open_console(io.StringIO())
    for name in ("show", "publish"):  # which draw
        nothing = {"verdict": [], "report": "none"}
        monkeypatch.setattr(metasched.commands.train, name, lambda *arguments, found=nothing, **named: found)
    whole = RunFolder.claim(tmp_path / "whole")
    result = train(EXPERIMENT, whole, console)
    spent = result["inner_steps"]
    trials = [line["tune/trial"] for line in lines(tmp_path / "whole") if "tune/trial" in line]
    assert trials == list(range(1, 17)) and spent["searching"] == 80  # 16 candidates, and 2 finalists twice
    assert spent["learning"] == 2 * STEPS
    path = whole.learned if whole.learned.exists() else whole.schedule
    source = read_schedule(path).provenance
    assert [(s.by, s.inner_steps) for s in source.spent or ()][:2] == [("tpe", 80), ("sweep", 2 * STEPS)]
    assert "starting at widths_constant_100, then tpe and sweep" in (source.citation or "")

    def stopped(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    folder = RunFolder.claim(tmp_path / "stopped")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metasched.commands.train, "export_confirmed", stopped)
        train(EXPERIMENT, folder, console)
    again = train(EXPERIMENT, folder, console)
    assert again["inner_steps"] == spent
    scores = [[x["tune/score"] for x in lines(f) if "tune/score" in x] for f in (tmp_path / "whole", folder.path)]
    assert scores[0] == scores[1]
    assert (folder.path / path.name).read_bytes() == path.read_bytes()
