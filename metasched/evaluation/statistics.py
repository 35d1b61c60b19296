"""Statistics of paired comparisons: means, standard deviations, and paired differences with intervals.

Paired differences use Student's t. Its error rates for scores on few examples, with outliers and on real runs are
measured in tests/evaluation/test_false_positives.py and scripts/reliability/false_positives.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from metasched.core.extras import from_extra

_ROUNDING = 1e-6  # relative rounding error of scores, which are computed in float32


class Summary(NamedTuple):
    """Mean and sample standard deviation of n scores."""

    mean: float
    sd: float
    n: int


class PairedDifference(NamedTuple):
    """Mean of n paired differences a - b with its two-sided confidence interval.

    Attributes:
        mean: mean of the differences.
        low, high: ends of the interval (Student's t with n - 1 degrees of freedom).
        n: number of pairs.
        p: two-sided p-value of "no difference"; 1 if all differences are 0. p < 1 - confidence exactly if the interval
            does not contain 0.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float


def counted(scores: Sequence[float], worst: float = 0.0) -> tuple[float, ...]:
    """The scores as they count: a run that diverged has none (NaN), and counts as the worst, the lowest accuracy.

    >>> counted([0.5, float("nan")])
    (0.5, 0.0)
    """
    return tuple(worst if math.isnan(score) else score for score in scores)


def lowest(scores: Sequence[float]) -> float:
    """The lowest finite score: what a diverged run counts where its task does not say; 0 where none is finite.

    >>> lowest([-0.5, float("nan"), float("-inf"), -2.0])
    -2.0
    """
    return min((score for score in scores if math.isfinite(score)), default=0.0)


def summarize(scores: Sequence[float]) -> Summary:
    """Mean, sample standard deviation (n - 1) and n; a single score has sd 0.

    >>> summarize([1.0, 3.0])
    Summary(mean=2.0, sd=1.4142135623730951, n=2)
    """
    n = len(scores)
    mean = math.fsum(scores) / n
    variance = math.fsum((s - mean) ** 2 for s in scores) / (n - 1) if n > 1 else 0.0
    return Summary(mean, math.sqrt(variance), n)


def half_interval(scores: Sequence[float], confidence: float = 0.95) -> float:
    """Half the width of Student's t interval of the mean; 0 for a single score.

    >>> round(half_interval([1.0, 3.0]), 3)
    12.706
    """
    with from_extra("train"):
        from scipy.special import stdtrit

    _, sd, n = summarize(scores)
    return float(stdtrit(n - 1, (1 + confidence) / 2)) * sd / math.sqrt(n) if n > 1 else 0.0


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """The mean difference a - b over pairs, with Student's t interval.

    If all differences are equal and not 0, which happens with few pairs of scores on few examples, their standard
    deviation is 0 and Student's t is undefined. Then p is that of the sign test, 2^(1 - n), and the standard error is
    the one for which Student's t gives this p.

    Args:
        a, b: scores of the two arms on the same seeds, in the same order; at least 2 each.
        confidence: confidence level of the interval.

    >>> paired_difference([0.75, 0.5], [0.5, 0.25]).p
    0.5
    """
    with from_extra("train"):
        from scipy.special import stdtr, stdtrit  # scipy.stats takes two seconds to import

    assert len(a) == len(b) >= 2, (len(a), len(b))
    mean, sd, n = summarize([x - y for x, y in zip(a, b, strict=True)])
    rounding = _ROUNDING * max(abs(score) for score in (*a, *b))
    if sd > rounding:
        error = sd / math.sqrt(n)
        p = float(2 * stdtr(n - 1, -abs(mean) / error))
    elif abs(mean) > rounding:
        p = 2.0 ** (1 - n)
        error = abs(mean) / float(-stdtrit(n - 1, p / 2))
    else:
        p, error = 1.0, 0.0
    margin = float(stdtrit(n - 1, (1 + confidence) / 2)) * error
    return PairedDifference(mean, mean - margin, mean + margin, n, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down method; reject where they are below alpha.

    With p_(1) <= ... <= p_(m), the i-th becomes max over j <= i of min(1, (m - j + 1) p_(j)). The family-wise error
    rate is at most alpha for any dependence between the tests; here all tests share one arm. Source: Holm, Scandinavian
    Journal of Statistics 6, 1979.

    >>> holm([0.5, 0.25, 0.0625])
    [0.5, 0.5, 0.1875]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
