"""Warm starts: members of a portfolio are tried first as they are, and the search learns of those it can place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metasched.config.load import experiment_of
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.exchange.portfolios import Entry, Portfolio, dumps, parameters_of
from metasched.methods.config import MethodConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded
from metasched.search.searchers import known_to
from metasched.search.table import SEARCHES
from metasched.search.tuning import Box, box_of, search, trials_within
from metasched.search.warm import CLOSE, Member, distance, members
from metasched.training.problem import build_problem

pytest.importorskip("optuna", reason="optional: tuning")
pytest.importorskip("cma", reason="optional: tuning")

LINEAR, STEPS = "ana_linear", "ana_partition_progressive_dynamic"


class Recorder:
    """A Mapper that scores a schedule by its mean weight noise, and remembers what it was asked."""

    workers = 1

    def __init__(self) -> None:
        self.asked: list[dict[str, torch.Tensor]] = []

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[list[float]]:
        for _, controls, seeds, _, part in arguments:
            assert part == "validation"
            self.asked.append(controls)
            yield [float(controls["weight_noise"].mean())] * len(seeds)


def portfolio(folder: Path, *names: str, method: str = "ana") -> str:
    config = MethodConfig(name=method)
    entries = tuple(Entry(name=name, schedule=name, own_rank=1.0, rank=1.0, scores={"a": (0.5,)}) for name in names)
    quantizers = {"levels": config.levels, "activation_levels": config.activation_levels}
    made = Portfolio(
        method=method, **quantizers, parameters=parameters_of(config), entries=entries, compared=2, horizons=(1,),
        seeds=1, sources={},
    )  # fmt: skip
    path = folder / "portfolio.json"
    path.write_text(dumps([made]))
    return str(path)


def experiment(**tune: Any) -> Experiment:
    return experiment_of(
        {
            "task": {"model": "mlp", "width": 4, "train": 100, "batch": 10, "steps": 10},
            "method": {"name": "ana"},
            "schedule": {"knots": 9, "directions": None},
            "tune": {"inner_steps": 160, "runs": 2, "finalists": 1, "final_runs": 4, **tune},
        }
    )


def warm(own: Experiment) -> tuple[list[Member], Box]:
    network = build_problem(own.problem).network
    learn = [control.name for control in network.method.controls]
    start = hand_coded("ana")["ana_cosine"]
    box = box_of(own.schedule, own.tune, network, start, learn, own.seed)
    return members(own.problem, own.schedule, own.tune, learn, box), box


def test_members_are_tried_first_as_they_are(tmp_path: Path) -> None:
    own = experiment(warm_start=portfolio(tmp_path, LINEAR, STEPS))
    known, box = warm(own)
    pool = Recorder()
    pairs = [(member.schedule, member.point) for member in known]
    found = search(own.problem, own.tune, own.seed, box, pool, lambda *_: None, pairs)
    assert len(found) == trials_within(own.tune, 10) == 6
    layers = build_problem(own.problem).network.layers
    for i, name in enumerate((LINEAR, STEPS)):
        exact = hand_coded("ana")[name](progress_of_steps(10), layers)
        torch.testing.assert_close(pool.asked[2 * i]["weight_noise"], exact["weight_noise"], rtol=0, atol=1e-3)
        assert found[i].score == pytest.approx(float(exact["weight_noise"].mean()), abs=1e-3)
    first = box.member(box.first)
    assert found[2].schedule.values["weight_noise"].equal(first.values["weight_noise"])  # then the start


def test_a_point_stands_for_a_member_only_where_the_schedule_there_is_close_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = experiment(warm_start=portfolio(tmp_path, LINEAR, STEPS))
    (linear, steps), box = warm(own)
    assert linear.point is not None
    controls = build_problem(own.problem).network.method.controls
    assert distance(linear.schedule, box.member(linear.point), controls) <= CLOSE
    assert distance(linear.schedule, linear.schedule, controls) == 0
    assert distance(linear.schedule, steps.schedule, controls) > CLOSE
    few = replace(own, tune=replace(own.tune, space="directions"), schedule=replace(own.schedule, directions=4))
    assert [member.point for member in warm(few)[0]] == [None, None]
    monkeypatch.setattr("metasched.search.warm.CLOSE", 1e-9)
    assert [member.point for member in warm(own)[0]] == [None, None]


@pytest.mark.parametrize("name", ["tpe", "random", "cmaes"])
def test_a_search_is_told_and_still_starts_at_its_first_point(name: str) -> None:
    builder = SEARCHES[name].builder
    assert builder is not None
    searcher = builder([0.1, 0.2], 0)
    assert known_to(searcher, [0.5, -0.5], 1.0) and known_to(searcher, [0.6, -0.6], 0.5)
    assert searcher.ask() == [0.1, 0.2]
    searcher.tell(0.0)
    assert len(searcher.ask()) == 2


def test_cma_goes_on_around_the_best_known_point() -> None:
    builder = SEARCHES["cmaes"].builder
    assert builder is not None
    searcher = builder([0.0] * 8, 0)
    for point, score in (([0.9] * 8, 1.0), ([-0.9] * 8, 0.5)):
        known_to(searcher, point, score)
    searcher.ask()
    searcher.tell(0.0)
    assert torch.tensor([searcher.ask() for _ in range(8)]).mean() > 0.4


def test_a_search_of_another_package_need_not_know_of_it() -> None:
    class Plain:
        def ask(self) -> list[float]:
            return [0.0]

        def tell(self, score: float) -> None:
            pass

    assert not known_to(Plain(), [0.0], 1.0)


def test_none_is_asked_for_or_there_is_none(tmp_path: Path) -> None:
    assert warm(experiment())[0] == []
    with pytest.raises(MetaschedError, match="there is no portfolio for ana, weights ternary"):
        warm(experiment(warm_start=portfolio(tmp_path, "inq_linear", method="inq")))
    with pytest.raises(MetaschedError, match=r"tune\.warm_start: has no effect"):
        experiment(warm_start="portfolio", search="pbt")
