"""Compares learners whose searches are arms of one result: the unit is a search, not a seed.

    python scripts/learners_table.py experiments/results/text_learners.json --first network

Arms whose names differ only in a number at their end (``network_1``, ``network_2``) are searches of one learner. A
search counts by its mean score over the paired seeds. The difference of the first learner to each other one has the
95 % interval of Welch's t-test, which does not take the spreads to be equal. All searches are scored on the same seeds,
so the interval says nothing about other seeds.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import ttest_ind

from metasched import MetaschedError
from metasched.evaluation.comparison import comparison_of


def searches(means: Mapping[str, float]) -> dict[str, list[float]]:
    """Learner -> the scores of its searches, of learners that have two or more.

    >>> searches({"es_1": 0.5, "es_2": 0.6, "lsq": 0.4})
    {'es': [0.5, 0.6]}
    """
    found: dict[str, list[float]] = {}
    for name, score in means.items():
        if numbered := re.fullmatch(r"(.+)_\d+", name):
            found.setdefault(numbered[1], []).append(score)
    return {name: scores for name, scores in found.items() if len(scores) > 1}


def markdown(found: Mapping[str, Sequence[float]], first: str) -> str:
    """The table: a row for each learner, differences of the first one to the others."""
    lines = [f"| learner | searches | mean | standard deviation | {first} - learner |", "| --- " * 5 + "|"]
    for name, scores in found.items():
        said = ""
        if name != first:
            test = ttest_ind(found[first], scores, equal_var=False)
            interval = test.confidence_interval(0.95)
            said = f"{mean(found[first]) - mean(scores):+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
        lines.append(f"| {name} | {len(scores)} | {mean(scores):.4f} | {stdev(scores):.4f} | {said} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of one result at its first horizon."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="a file of experiments/results, or comparison.json of a run")
    parser.add_argument("--first", required=True, help="the learner to which the others are compared")
    arguments = parser.parse_args(argv)
    try:
        comparison = comparison_of(json.loads(arguments.result.read_text("utf-8")))
        arms = comparison.at(comparison.horizons[0])
        found = searches({name: arm.summary.mean for name, arm in arms.items()})
        if arguments.first not in found:
            problem = f"has no two searches of {arguments.first}"
            raise MetaschedError(str(arguments.result), problem, f"use one of {', '.join(found) or 'another result'}")
    except (MetaschedError, OSError) as error:
        parser.error(str(error))
    print(markdown(found, arguments.first), end="")


if __name__ == "__main__":
    main()
