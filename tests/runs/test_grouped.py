"""Losses of a task's own group of pairs, on one scale."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasched.runs.grouped import GroupedRuns, normalized
from metasched.runs.local import Judged, Run

LOSSES = [3.0, 1.0, 10.0, 14.0, 5.0, 5.0]
nan = math.nan


def halves(losses: list[float]) -> list[float]:
    return [(a - b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)]


def means(losses: list[float]) -> list[float]:
    return [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)]


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=10).filter(lambda x: len(x) % 2 == 0), st.floats(1e-3, 1e3))
def test_a_group_has_the_same_scale_whatever_the_scale_of_its_losses(losses: list[float], factor: float) -> None:
    if not any(abs(h) > 1e-3 for h in halves(losses)):
        return
    for how in ("group", "sign"):
        one, other = (halves(normalized([f * x for x in losses], how)) for f in (1.0, factor))  # type: ignore[arg-type]
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
    assert math.fsum(h * h for h in halves(normalized(losses, "group"))) == pytest.approx(len(losses) / 2, rel=1e-9)


def test_signs_are_all_that_is_left_and_means_stay() -> None:
    assert halves(normalized(LOSSES, "sign")) == [1.0, -1.0, 0.0]
    root = math.sqrt((1 + 4 + 0) / 3)
    assert halves(normalized(LOSSES, "group")) == pytest.approx([1 / root, -2 / root, 0.0])
    for how in ("group", "sign", "none"):
        assert means(normalized(LOSSES, how)) == pytest.approx(means(LOSSES))  # type: ignore[arg-type]
    assert normalized(LOSSES, "none") == LOSSES


@pytest.mark.parametrize("how", ["group", "sign"])
def test_pairs_that_are_not_finite_stay_and_are_left_out(how: str) -> None:
    found = normalized([*LOSSES, nan, 1.0, 2.0, math.inf], how)  # type: ignore[arg-type]
    assert found[:6] == normalized(LOSSES, how)  # type: ignore[arg-type]
    assert math.isnan(found[6]) and found[7:] == [1.0, 2.0, math.inf]
    assert all(math.isnan(x) for x in normalized([nan, nan], how))  # type: ignore[arg-type]
    assert normalized([2.0, 2.0], how) == [2.0, 2.0]  # type: ignore[arg-type]


class Planted:
    problem = "the problem"

    def judged(self, runs: list[Run]) -> list[Judged]:
        return [Judged(loss, score=0.5) for loss in LOSSES]

    def gradients(self, runs: list[Run]) -> str:
        return "gradients"

    def slopes(self, runs: list[Run]) -> str:
        return "slopes"

    def segments(self, segments: list[Run]) -> str:
        return "segments"


def test_only_judged_losses_change() -> None:
    runs = GroupedRuns(Planted(), "sign")  # type: ignore[arg-type]
    assert runs.judged([]) == [Judged(loss, 0.5) for loss in normalized(LOSSES, "sign")]
    assert (runs.problem, runs.gradients([]), runs.slopes([]), runs.segments([])) == (
        "the problem",
        "gradients",
        "slopes",
        "segments",
    )
