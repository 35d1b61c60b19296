"""The line that a comparison says first, from scores that are worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from metasched.evaluation.comparison import Arm, Comparison, comparison_of
from metasched.evaluation.statistics import paired_difference
from metasched.evaluation.tuned_rate import TunedRate
from metasched.evaluation.verdict import Verdict, verdicts

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


# --- two floors ---

LSQ = Arm("lsq", 5, (0.55, 0.64, 0.76, 0.65), 20, method="ste")  # mean 0.65; GOOD minus it: 0.06, 0.05, 0.04, 0.05


def with_rate(arm: Arm, score: float) -> Arm:
    """The arm with a tuned rate that had this score on validation."""
    return replace(arm, tuned=TunedRate(0.02, ((0.01, score - 0.1), (0.02, score)), 2, 20))


def p_of(arm: Arm, floor: Arm) -> float:
    return paired_difference(arm.scores, floor.scores).p


def test_above_the_floor_is_above_both() -> None:
    (found,) = verdicts(of(GOOD, FLOOR, LSQ, CEILING))
    assert found.floors == {"lsq": pytest.approx(0.65), "ste": pytest.approx(0.6)} and not found.named
    assert found.difference is not None and found.difference.mean == pytest.approx(0.05)
    assert found.p == pytest.approx(max(p_of(GOOD, FLOOR), p_of(GOOD, LSQ))) and found.finding == "above"
    assert found.closed == pytest.approx(0.05 / 0.3)  # of the gap between the better floor and the ceiling
    assert "against no schedule (lsq 0.6500, ste 0.6000), n = 4, p = " in str(found)
    assert str(found).endswith(": above both; closes 17 % of the gap to float (0.9500)")
    assert found.to_dict()["floor"] == pytest.approx(0.65) and found.to_dict()["floors"].keys() == {"lsq", "ste"}


def test_above_the_better_floor_alone_is_level() -> None:
    """The difference to the worse floor is larger, and too uncertain."""
    wild = replace(FLOOR, scores=(0.10, 0.95, 0.35, 0.80))  # mean 0.55
    (found,) = verdicts(of(GOOD, wild, LSQ, CEILING))
    assert found.difference is not None and found.difference.low > 0 and p_of(GOOD, LSQ) < 0.05
    assert found.p == pytest.approx(p_of(GOOD, wild)) and found.finding == "level"
    assert ": level (after correction for 1 arms and both floors); closes 17 %" in str(found)


def test_between_the_floors_is_no_gain() -> None:
    between = replace(GOOD, scores=(0.51, 0.61, 0.73, 0.63))  # 0.02 above ste, 0.03 below lsq
    first, found = verdicts(of(between, FLOOR, LSQ, CEILING))
    assert (first.arm, first.difference) == ("lsq", None)
    assert str(first) == (
        "verdict after 5 steps: no schedule (lsq) is best, 0.6500: none of 1 schedules has a higher mean; float 0.9500"
    )
    assert found.p == pytest.approx(2 * p_of(between, LSQ)) and found.finding == "below" and found.closed is None
    assert str(found).endswith(": below lsq; float 0.9500")


def test_below_both_is_below_the_better_one() -> None:
    _, found = verdicts(of(BAD, FLOOR, LSQ, learned=("linear",)))
    assert str(found).endswith(": below lsq") and found.p == pytest.approx(2 * p_of(BAD, LSQ))


def test_a_tie_with_two_floors_is_level() -> None:
    tied = Arm("learned", 5, (0.70, 0.50, 0.80, 0.61), 20)
    (found,) = verdicts(of(tied, FLOOR, LSQ))
    assert found.finding == "level" and str(found).endswith(": level")


def test_of_equal_floors_ste_is_named_first() -> None:
    (found,) = verdicts(of(GOOD, replace(FLOOR, name="lsq"), FLOOR))
    assert list(found.floors) == ["ste", "lsq"]


def test_lsq_alone_is_a_floor() -> None:
    (found,) = verdicts(of(GOOD, LSQ, CEILING))
    assert "against no schedule (lsq 0.6500), n = 4" in str(found) and str(found).split("; ")[0].endswith(": above")


@pytest.mark.parametrize(("ste", "lsq", "named"), [(0.7, 0.6, "ste"), (0.6, 0.7, "lsq"), (0.7, 0.7, "ste")])
def test_tuned_floors_are_named_by_validation(ste: float, lsq: float, named: str) -> None:
    """Whichever is better on test; the p-value is that of the one comparison."""
    arms = (GOOD, with_rate(FLOOR, ste), with_rate(LSQ, lsq), with_rate(CEILING, 0.9))
    (found,) = verdicts(of(*arms))
    floor = {"ste": FLOOR, "lsq": LSQ}[named]
    assert list(found.floors) == [named] and found.named
    assert found.p == pytest.approx(p_of(GOOD, floor))
    assert f"against no schedule ({named} {floor.summary.mean:.4f}, chosen on validation), n = 4" in str(found)
    assert str(found).split("; ")[0].endswith(": above")


def test_the_other_floor_can_be_best() -> None:
    between = replace(GOOD, scores=(0.51, 0.61, 0.73, 0.63))
    first, second = verdicts(of(between, with_rate(FLOOR, 0.7), with_rate(LSQ, 0.6), CEILING))
    assert first.closed is None and second.closed == pytest.approx(0.02 / 0.35)
    assert "no schedule (lsq) is best, 0.6500" in str(first) and list(second.floors) == ["ste"]


def test_a_floor_with_the_rate_of_the_experiment_is_not_named_in_advance() -> None:
    (found,) = verdicts(of(GOOD, FLOOR, with_rate(LSQ, 0.6)))
    assert list(found.floors) == ["lsq", "ste"] and not found.named


def test_differences_to_both_floors_are_in_the_table_and_in_the_file() -> None:
    untuned = of(GOOD, FLOOR, LSQ, CEILING)
    columns, rows = untuned.rows(5)
    assert columns[4:6] == ["this - ste [95 % interval]", "this - lsq [95 % interval]"]
    assert [[cell.split(" ")[0] for cell in row[4:6]] for row in rows if row[0] in ("learned", "lsq", "ste")] == [
        ["+0.1000", "+0.0500"],
        ["+0.0500", ""],
        ["", "-0.0500"],
    ]
    learned = untuned.to_dict()["arms"][0]
    assert (learned["over_floor"]["mean"], learned["over_lsq"]["mean"]) == pytest.approx((0.1, 0.05))
    tuned = of(GOOD, with_rate(FLOOR, 0.6), with_rate(LSQ, 0.7))
    columns, rows = tuned.rows(5)
    assert columns[4:6] == ["tuned lr", "this - lsq [95 % interval]"]
    assert {row[0]: row[4] for row in rows} == {"learned": "", "ste": "0.02", "lsq": "0.02"}
    assert comparison_of(tuned.to_dict()) == tuned


@pytest.mark.parametrize("gap", [0.0, 0.005, 0.1])
def test_an_arm_that_is_no_schedule_is_rarely_called_better_or_worse(gap: float) -> None:
    """An arm that is as good as the better of two floors is above in 3 % of comparisons at most, and below likewise."""
    random, found = np.random.default_rng(0), list[Verdict]()
    for _ in range(600):
        scores = random.normal(0.8, 0.02, (3, 8)) - np.array([0.0, 0.0, gap])[:, None]
        arms = [Arm(name, 5, tuple(s), 40) for name, s in zip(("a", "ste", "lsq"), scores.tolist(), strict=True)]
        found += [v for v in verdicts(Comparison(tuple(range(8)), tuple(arms), ("a",))) if v.arm == "a"]
    assert sum(v.finding == "above" for v in found) <= 18 and sum(v.finding == "below" for v in found) <= 24


def test_a_floor_that_was_named_at_one_horizon_is_not_named_at_a_longer_one() -> None:
    """Rates were tuned at 5 steps, where validation prefers ste; at 15 steps lsq may be the better floor."""
    at_5 = (GOOD, with_rate(FLOOR, 0.9), with_rate(LSQ, 0.8))
    at_15 = tuple(replace(arm, horizon=15) for arm in at_5)
    short, long = verdicts(of(*at_5, *at_15))
    assert short.named and list(short.floors) == ["ste"]
    assert not long.named and list(long.floors) == ["lsq", "ste"]
    assert long.difference is not None and long.difference.mean == pytest.approx(0.05)
    assert long.p == pytest.approx(max(p_of(GOOD, FLOOR), p_of(GOOD, LSQ)))
