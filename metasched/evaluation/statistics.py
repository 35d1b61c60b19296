"""Statistics of paired comparisons: means, standard deviations, paired differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats


class Summary(NamedTuple):
    """Mean and sample standard deviation of n scores."""

    mean: float
    sd: float
    n: int


class PairedDifference(NamedTuple):
    """Mean of n paired differences a - b with its two-sided confidence interval.

    Attributes:
        mean: of the differences.
        low, high: ends of the interval (Student's t with n - 1 degrees of freedom).
        n: pairs.
        p: two-sided p-value of "no difference"; 1 where all differences are 0.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float


def summarize(scores: Sequence[float]) -> Summary:
    """Mean, sample standard deviation (n - 1) and n; a single score has sd 0.

    >>> summarize([1.0, 3.0])
    Summary(mean=2.0, sd=1.4142135623730951, n=2)
    """
    n = len(scores)
    mean = math.fsum(scores) / n
    variance = math.fsum((s - mean) ** 2 for s in scores) / (n - 1) if n > 1 else 0.0
    return Summary(mean, math.sqrt(variance), n)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """The mean difference a - b over pairs, with Student's t interval.

    Args:
        a, b: scores of the two arms on the same seeds, in the same order; at least 2.
        confidence: of the interval.
    """
    assert len(a) == len(b) >= 2, (len(a), len(b))
    mean, sd, n = summarize([x - y for x, y in zip(a, b, strict=True)])
    error = sd / math.sqrt(n)
    margin = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    p = 1.0 if mean == 0 else 0.0 if error == 0 else float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return PairedDifference(mean, mean - margin, mean + margin, n, p)
