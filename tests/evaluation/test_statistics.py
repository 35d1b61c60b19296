"""Paired statistics against scipy, and their error rates on planted truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metasched.evaluation.statistics import PairedDifference, counted, holm, paired_difference, summarize

SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50))
def test_summary_is_that_of_numpy(scores: list[float]) -> None:
    found = summarize(scores)
    assert found.n == len(scores)
    assert found.mean == pytest.approx(np.mean(scores), rel=1e-12, abs=1e-12)
    assert found.sd == pytest.approx(np.std(scores, ddof=1), rel=1e-9, abs=1e-9)


def test_a_run_that_diverged_counts_as_0() -> None:
    assert counted([0.5, math.nan, -0.25, 1.0]) == (0.5, 0.0, -0.25, 1.0)
    assert counted([math.nan]) == (0.0,) and counted([]) == ()


def test_summary_of_one_score_has_no_spread() -> None:
    assert summarize([0.25]) == (0.25, 0.0, 1)


@given(SCORES, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_paired_t_is_that_of_scipy(pairs: list[tuple[float, float]], confidence: float) -> None:
    a, b = (list(arm) for arm in zip(*pairs, strict=True))
    differences = np.subtract(a, b)
    if np.ptp(differences) < 1e-5:  # what is taken for rounding is another matter
        return
    found = paired_difference(a, b, confidence)
    reference = stats.ttest_rel(a, b)
    interval = reference.confidence_interval(confidence)
    spread = float(differences.std(ddof=1))
    assert found.mean == pytest.approx(differences.mean(), abs=1e-12)
    assert found.low == pytest.approx(interval.low, abs=1e-9 * spread)
    assert found.high == pytest.approx(interval.high, abs=1e-9 * spread)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    assert found.n == len(pairs)


def test_an_example_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, sd 1, t with 2 degrees of freedom 4.302652729911275 (tables)."""
    found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    margin = 4.302652729911275 / math.sqrt(3)
    assert found.mean == 2
    assert (found.low, found.high) == (pytest.approx(2 - margin), pytest.approx(2 + margin))
    assert found.p == pytest.approx(0.0741799, abs=1e-7)


def test_arms_without_spread() -> None:
    assert paired_difference([1.0, 0.5], [1.0, 0.5]) == PairedDifference(0.0, 0.0, 0.0, 2, 1.0)
    assert paired_difference([0.0, 0.0], [0.0, 0.0]) == PairedDifference(0.0, 0.0, 0.0, 2, 1.0)  # all have diverged
    found = paired_difference([1.0, 0.75], [0.5, 0.25])  # with one degree of freedom p = 0.5 is at t = 1
    margin = 0.5 * 12.706204736174694  # the 97.5 % point of t (tables)
    assert found[:3] == (0.5, pytest.approx(0.5 - margin), pytest.approx(0.5 + margin)) and found[3:] == (2, 0.5)
    assert paired_difference([0.85, 0.9, 0.7], [0.8, 0.85, 0.65]).p == 0.25  # equal up to rounding


@pytest.mark.parametrize("n", [2, 5, 6, 12])
def test_equal_differences_are_significant_from_six_pairs_on(n: int) -> None:
    """2^(1 - n) is below 0.05 from n = 6 on."""
    for sign in (1, -1):
        found = paired_difference([0.5 + 0.125 * sign] * n, [0.5] * n)
        assert found.p == 2.0 ** (1 - n) and found.mean == 0.125 * sign
        assert (found.low > 0 or found.high < 0) == (found.p < 0.05) == (n >= 6)


def test_swapping_the_arms_turns_the_sign() -> None:
    a, b = np.random.default_rng(0).random((2, 7)).tolist()
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert (one.mean, one.low, one.high, one.p) == pytest.approx((-other.mean, -other.high, -other.low, other.p))


def test_pairs_are_needed() -> None:
    for a, b in (([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([], [])):
        with pytest.raises(AssertionError):
            paired_difference(a, b)


@pytest.mark.parametrize("n", [5, 16])
def test_two_equal_arms_differ_significantly_in_5_percent_of_comparisons(n: int) -> None:
    random = np.random.default_rng(0)
    seed_effect = random.normal(0.85, 0.05, (400, n))
    arms = seed_effect + random.normal(0, 0.01, (2, 400, n))
    found = [paired_difference(a.tolist(), b.tolist()) for a, b in zip(*arms, strict=True)]
    false_positives = np.mean([d.p < 0.05 for d in found])
    assert 0.03 <= false_positives <= 0.07
    assert all((d.low > 0 or d.high < 0) == (d.p < 0.05) for d in found)  # interval and p-value say the same


def test_an_effect_of_two_standard_deviations_is_found_in_ten_pairs() -> None:
    random = np.random.default_rng(1)
    seed_effect = random.normal(0.85, 0.05, (400, 10))
    differences = random.normal(2 * 0.01, 0.01, (400, 10))
    found = [
        paired_difference((base + d).tolist(), base.tolist()) for base, d in zip(seed_effect, differences, strict=True)
    ]
    assert np.mean([d.low > 0 for d in found]) >= 0.9
    assert 0.92 <= np.mean([d.low <= 0.02 <= d.high for d in found]) <= 0.98  # the truth lies in the interval


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        p = generator.uniform(size=6) ** 3
        rejected = set()
        for rank, i in enumerate(np.argsort(p)):  # the procedure as the paper has it: stop at the first that fails
            if p[i] > 0.05 / (6 - rank):
                break
            rejected.add(int(i))
        assert {i for i, value in enumerate(holm(list(p))) if value <= 0.05} == rejected


def test_holm_by_hand() -> None:
    assert holm([0.75, 0.25, 0.0625]) == [0.75, 0.5, 0.1875]  # times 1, 2 and 3
    assert holm([0.5, 0.9, 0.4]) == [1.0, 1.0, 1.0]  # no probability is above 1, and the order is kept
    assert holm([]) == []


def test_holm_keeps_the_family_wise_error() -> None:
    generator = np.random.default_rng(1)
    wrong = sum(min(holm(list(generator.uniform(size=20)))) <= 0.05 for _ in range(2000))
    assert 0.035 < wrong / 2000 < 0.065  # 1 - 0.95, within three standard errors
