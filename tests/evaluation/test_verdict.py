"""The line that a comparison says first, from scores that are worked out by hand."""

from __future__ import annotations

import pytest
from scipy import stats

from metasched.evaluation.comparison import Arm, Comparison
from metasched.evaluation.verdict import verdicts

FLOOR = Arm("ste", 5, (0.50, 0.60, 0.70, 0.60), 20, method="ste")  # mean 0.6
CEILING = Arm("float", 5, (0.90, 1.00, 0.95, 0.95), 20, method="float")  # mean 0.95
GOOD = Arm("learned", 5, (0.61, 0.69, 0.80, 0.70), 20)  # differences 0.11, 0.09, 0.10, 0.10: mean 0.1
BAD = Arm("linear", 5, (0.40, 0.50, 0.61, 0.49), 20)  # differences -0.10, -0.10, -0.09, -0.11


def of(*arms: Arm, learned: tuple[str, ...] = ("learned",)) -> Comparison:
    return Comparison((1, 2, 3, 4), arms, learned)


def test_the_best_arm_is_held_against_the_floor() -> None:
    (found,) = verdicts(of(GOOD, FLOOR, CEILING, BAD))
    assert (found.arm, found.best, found.arms, found.finding) == ("learned", True, 2, "above")
    assert found.difference is not None and found.difference.mean == pytest.approx(0.1)
    assert found.closed == pytest.approx(0.1 / 0.35)
    sd = (2 * 0.01**2 / 3) ** 0.5
    p = 2 * stats.t.sf(0.1 / (sd / 2), 3)
    assert found.p == pytest.approx(2 * p)  # both differences have this size: Holm doubles the first
    assert str(found).startswith("verdict after 5 steps: learned is best of 2, 0.7000: +0.1000 [")
    assert "against no schedule (ste 0.6000), n = 4" in str(found)
    assert str(found).endswith(": above; closes 29 % of the gap to float (0.9500)")


def test_no_schedule_can_be_best_and_the_learned_arm_is_named_all_the_same() -> None:
    first, second = verdicts(of(FLOOR, CEILING, BAD, learned=("linear",)))
    assert (first.arm, first.difference, first.closed) == ("ste", None, None)
    assert "no schedule (ste) is best, 0.6000: none of 1 schedules has a higher mean; float 0.9500" in str(first)
    assert (second.arm, second.best, second.finding, second.closed) == ("linear", False, "below", None)
    assert "closes" not in str(second)


def test_a_tie_is_called_a_tie() -> None:
    tied = Arm("learned", 5, (0.70, 0.50, 0.80, 0.50), 20)  # differences 0.2, -0.1, 0.1, -0.1
    (found,) = verdicts(of(tied, FLOOR, CEILING))
    assert found.finding == "level" and ": level; closes 7 % of the gap" in str(found)


def test_an_interval_above_0_is_no_gain_if_many_arms_were_tried() -> None:
    slight = Arm("a", 5, (0.56, 0.63, 0.73, 0.67), 20)  # differences 0.06, 0.03, 0.03, 0.07: mean 0.0475
    others = [Arm(f"x{i}", 5, (0.5, 0.6, 0.7, 0.6 + 0.001 * (i + 1)), 20) for i in range(9)]
    (found,) = verdicts(of(slight, FLOOR, *others, learned=()))
    assert found.difference is not None and found.difference.low > 0 and found.p is not None and found.p > 0.05
    assert found.finding == "level" and "level (after correction for 10 arms)" in str(found)


def test_of_equal_means_no_schedule_is_the_better_one() -> None:
    equal = Arm("learned", 5, (0.60, 0.50, 0.60, 0.70), 20)
    assert verdicts(of(equal, FLOOR))[0].arm == "ste"


def test_old_results_have_no_floor_and_no_verdict() -> None:
    assert verdicts(of(GOOD, BAD)) == []
