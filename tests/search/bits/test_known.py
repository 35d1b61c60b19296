"""Scores of allocations that are read back: they are not computed again, and other ones are not mixed in."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.search.bits.known import KnownScores
from metasched.search.bits.problem import Choice

SCORES: dict[Choice, float] = {(0, 1): 0.1 + 0.2, (1, 1): math.nan, (2, 0): -math.inf, ((0, 1), 2): -1e-300}


def refuse(choice: Choice) -> float:
    raise AssertionError(f"{choice} is known")


def test_scores_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    with KnownScores(SCORES.__getitem__, path, "one") as first:
        found = [first(choice) for choice in SCORES]
        assert first((0, 1)) == 0.1 + 0.2 and len(path.read_text().splitlines()) == len(SCORES)
    with KnownScores(refuse, path, "one") as again:
        assert repr([again(choice) for choice in SCORES]) == repr(found)


def test_those_of_something_else_are_computed(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    with KnownScores(lambda choice: 1.0, path, "one") as first:
        first((0, 1))
    with KnownScores(lambda choice: 2.0, path, "other") as other:
        assert other((0, 1)) == 2.0
    with KnownScores(refuse, path, "one") as again:
        assert again((0, 1)) == 1.0


def test_a_torn_last_line_is_left_out_and_another_bad_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    with KnownScores(lambda choice: 1.0, path, "one") as first:
        assert first((0, 1)) == first((1, 0)) == 1.0
    path.write_bytes(path.read_bytes()[:-5])
    with (
        pytest.warns(MetaschedWarning, match="the last line is incomplete"),
        KnownScores(lambda choice: 3.0, path, "one") as torn,
    ):
        assert (torn((0, 1)), torn((1, 0))) == (1.0, 3.0)
    path.write_text('{"about": "one", "choice": [0, 1], "score": true}\n')
    with pytest.raises(MetaschedError, match=r"scores.jsonl: line 1: does not hold a score; delete the line"):
        KnownScores(refuse, path, "one")
