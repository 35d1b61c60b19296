"""Portfolio files: canonical, strict, bound to their schedule files by hashes; found by method and bits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import metasched
from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.portfolios import (
    Curse,
    Entry,
    Portfolio,
    content_hash,
    dumps,
    parameters_of,
    portfolio_for,
    portfolios_of,
    read_portfolios,
    shipped_portfolios,
)
from metasched.exchange.shipped import file_of
from metasched.methods.config import MethodConfig
from metasched.schedules.table import hand_coded

ANA = MethodConfig(name="ana")


def entry(schedule: str, hash: str | None = None) -> Entry:
    return Entry(name=Path(schedule).stem, schedule=schedule, hash=hash, own_rank=1.5, rank=1.0, scores={"a": (0.5,)})


def made(method: MethodConfig = ANA, *entries: Entry) -> Portfolio:
    return Portfolio(
        method=method.name,
        levels=method.levels,
        activation_levels=method.activation_levels,
        parameters=parameters_of(method),
        entries=entries or (entry("ana_constant_085"), entry("ana_static")),
        compared=9,
        horizons=(1,),
        seeds=4,
        curse=(Curse(k=1, chosen=0.6, fresh=0.5),),
        sources={"scores.json": "0" * 64},
    )


def written(folder: Path, *portfolios: Portfolio) -> Path:
    path = folder / "portfolio.json"
    path.write_text(dumps(portfolios))
    return path


def test_a_file_is_read_back_and_has_one_text(tmp_path: Path) -> None:
    path = written(tmp_path, made())
    assert read_portfolios(path) == (made(),)
    assert dumps(read_portfolios(path)) == path.read_text()


def test_schedules_come_in_their_order_for_a_method_and_its_bits(tmp_path: Path) -> None:
    four = MethodConfig(name="ana", levels="int4")
    path = str(written(tmp_path, made(), made(four, entry("ana_static"))))
    first, second = metasched.portfolio("ana", "ternary", named=path)
    assert first is hand_coded("ana")["ana_constant_085"] and second is hand_coded("ana")["ana_static"]
    assert metasched.portfolio("ana", 2, named=path) == (first, second)
    assert metasched.portfolio("ana", 4, named=path) == (second,)
    for bits, message in ((None, "2 portfolios for ana: "), (3, "no portfolios for ana with bits 3")):
        with pytest.raises(MetaschedError, match=message):
            metasched.portfolio("ana", bits, named=path)


def test_no_schedule_may_be_the_first_one(tmp_path: Path) -> None:
    widths = MethodConfig(name="widths", levels="int4")
    (schedule,) = metasched.portfolio("widths", named=str(written(tmp_path, made(widths, entry("floor")))))
    assert getattr(schedule, "name", "") == "floor"


def test_a_schedule_file_lies_beside_it_and_must_not_change(tmp_path: Path) -> None:
    learned = file_of("digits_ana")
    assert learned is not None
    shutil.copy(learned, tmp_path / "mine.json")
    path = written(tmp_path, made(ANA, entry("mine.json", content_hash(tmp_path / "mine.json"))))
    (schedule,) = metasched.portfolio("ana", named=str(path))
    assert isinstance(schedule, PlayedSchedule)
    (tmp_path / "mine.json").write_text((tmp_path / "mine.json").read_text() + "\n")
    with pytest.raises(MetaschedError, match="its hash differs"):
        read_portfolios(path)


def test_other_parameters_are_warned_of_and_other_bits_refused(tmp_path: Path) -> None:
    path = str(written(tmp_path, made()))
    assert portfolio_for(ANA, path) == made()
    with pytest.warns(MetaschedWarning, match="was built with another noise: its order may not hold"):
        portfolio_for(MethodConfig(name="ana", noise="uniform"), path)
    with pytest.raises(MetaschedError, match=r"no portfolio for ana, weights int4, .*which has: ana, weights ternary"):
        portfolio_for(MethodConfig(name="ana", levels="int4"), path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1', '"version": 2', "version"),
        ('"own_rank": 1.5', '"own_rank": "x"', "own_rank"),
        ('"format": "metasched.portfolio"', '"format": "x"', "format"),
        ('"compared": 9', '"compared": 9, "more": 1', "more"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = written(tmp_path, made())
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(MetaschedError, match=message):
        read_portfolios(path)


def test_those_of_the_package_are_valid_and_say_what_they_are_from() -> None:
    for name, summary in shipped_portfolios().items():
        assert summary
        for portfolio in portfolios_of(name):
            assert all(portfolio_for(portfolio.config).schedules) and portfolio.sources
            assert replace(portfolio).recipe
            metasched.portfolio(portfolio.method, portfolio.levels, named=name)
    with pytest.raises(MetaschedError, match="unknown name 'nothing'"):
        portfolios_of("nothing")
