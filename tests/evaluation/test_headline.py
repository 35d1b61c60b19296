from __future__ import annotations

import math

from metasched.evaluation.comparison import Arm, Comparison
from metasched.evaluation.headline import best_published, headline, numeric_table
from metasched.evaluation.statistics import paired_difference

ARMS = (
    Arm("mine", 5, (0.6, 0.7, 0.8), 15),
    Arm("ana_static", 5, (0.5, 0.5, 0.6), 15),
    Arm("ana_linear+inq_linear", 5, (0.5, 0.6, 0.7), 15),
    Arm("a_file", 5, (0.9, 0.9, 0.9), 15),
    Arm("ste", 5, (0.4, 0.5, 0.4), 15),
    Arm("lsq", 5, (0.3, 0.5, 0.4), 15),
    Arm("float", 5, (0.9, 0.9, 1.0), 15),
)


def test_the_best_published_is_a_hand_coded_one_or_several_joined() -> None:
    best = best_published(Comparison((1, 2, 3), ARMS, ("mine",)), 5)
    assert best is not None and best.name == "ana_linear+inq_linear"
    assert best_published(Comparison((1, 2, 3), (ARMS[0], *ARMS[3:]), ("mine",)), 5) is None


def test_the_headline_has_the_numbers_of_the_verdict() -> None:
    found = headline(Comparison((1, 2, 3), ARMS, ("mine",)))
    d = paired_difference(ARMS[0].scores, ARMS[4].scores)
    assert found["learned"] == ARMS[0].summary.mean and found["floor"] == ARMS[4].summary.mean
    assert found["ceiling"] == ARMS[6].summary.mean and found["best_published"] == ARMS[2].summary.mean
    assert (found["difference"], found["low"], found["high"], found["n"]) == (d.mean, d.low, d.high, 3)
    assert found["p"] >= d.p  # corrected


def test_the_table_is_of_numbers() -> None:
    columns, rows = numeric_table(Comparison((1, 2, 3), ARMS, ("mine",)), 5)
    table = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert all(isinstance(cell, float | int) for row in rows for cell in row[2:])
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)
    d = paired_difference(ARMS[0].scores, ARMS[4].scores)
    assert [table["mine"][c] for c in ("minus floor", "low", "high")] == [d.mean, d.low, d.high]
    assert [table["ste"][c] for c in ("learned minus this", "low of that", "high of that")] == [d.mean, d.low, d.high]
    unknown = (table["ste"]["minus floor"], table["mine"]["p (Holm)"], table["ste"]["bytes"])
    assert all(isinstance(value, float) and math.isnan(value) for value in unknown)
    assert set(table) == {arm.name for arm in ARMS}


def test_what_was_not_played_is_left_out() -> None:
    assert headline(Comparison((1, 2, 3), ARMS[3:4], ())) == {}
    assert set(headline(Comparison((1, 2, 3), ARMS[4:6], ()))) == {"floor"}
