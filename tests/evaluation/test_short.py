"""The table of a comparison in a terminal."""

from __future__ import annotations

import io
import json
from html import escape
from pathlib import Path

import pytest

from metasched.evaluation.comparison import Arm, Comparison, comparison_of
from metasched.evaluation.short import show_scores
from metasched.evaluation.verdict import verdicts
from metasched.schedules.table import method_of_hand_coded
from metasched.tracking.console import open_console

FOLDER = Path(__file__).parents[2] / "experiments" / "results"
KEPT = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("digits_*.json"))}
COMPARISONS = {
    name: result for name, result in KEPT.items() if {"seeds", "learned"} <= {*result} and "scores" in result["arms"][0]
}


def shown(comparison: Comparison) -> list[str]:
    stream = io.StringIO()
    show_scores(comparison, comparison.horizons[0], open_console(stream))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("name", COMPARISONS)
def test_kept_results_fit_80_columns_with_whole_names(name: str) -> None:
    comparison = comparison_of(COMPARISONS[name])
    lines = shown(comparison)
    assert max(map(len, lines)) <= 80
    names = {arm.name for arm in comparison.at(comparison.horizons[0]).values()}
    assert {line.split("  ")[1] for line in lines[2:] if line.startswith("  ")} <= names


@pytest.mark.parametrize("name", COMPARISONS)
def test_printed_a_comparison_is_its_verdicts_and_scores_in_80_columns(name: str) -> None:
    comparison = comparison_of(COMPARISONS[name])
    text = str(comparison)
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"Score of the hard network after {steps} steps, n = " in text for steps in comparison.horizons)
    assert text.count("verdict after") == len(verdicts(comparison))
    shown = repr(comparison)
    assert comparison.arms[0].name in shown and len(shown) < 250 and "scores" not in shown
    assert f">{escape(text)}</pre>" in comparison._repr_html_()


def test_the_longest_name_fits() -> None:
    longest = max(method_of_hand_coded(), key=len)
    arms = (Arm(longest, 5, (0.1, 0.2), 5), Arm("lsq", 5, (0.1, 0.4), 5))
    assert max(map(len, shown(Comparison((1, 2), arms, (longest,))))) <= 80


def test_it_has_those_that_matter_and_says_how_many_are_left_out() -> None:
    names = [f"arm{i:02d}" for i in range(10)]
    arms = [Arm(name, 5, (0.5 - i / 100, 0.52 - i / 100), 5) for i, name in enumerate(names)]
    arms += [Arm("learned", 5, (0.1, float("nan")), 5), Arm("ste", 5, (0.3, 0.35), 5), Arm("lsq", 5, (0.3, 0.3), 5)]
    lines = shown(Comparison((1, 2), (*arms, Arm("float", 5, (0.9, 0.9), 5)), ("learned",)))
    rows = [line.split() for line in lines if line.startswith("  ")]
    assert [row[0] for row in rows] == ["schedule", "float", *names[:5], "ste", "lsq", "learned"]
    assert lines[1].split("  ")[-1] == "this - ste [95 % interval]"
    assert lines[-3:-1] == ["5 more arms in the report", "runs that diverged: 1 of learned"]
