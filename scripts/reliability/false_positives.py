r"""How often comparisons of real runs find a difference that is not there, and one that is.

    python scripts/reliability/false_positives.py --seeds 240 \
        --json experiments/results/reliability_false_positives.json --table docs/tables/reliability_false_positives.md

Two hand-coded schedules are played from so many seeds on digits: a bank of test scores of hardened networks, paired by
seed. From it comparisons of n pairs are drawn, each without replacement:

    disjoint    one schedule in both arms, from disjoint seeds: the scores of a pair have nothing in common
    swapped     both schedules on the same seeds, each pair's labels swapped by a coin: pairs are as correlated as real
                ones, and no arm is better
    planted     as disjoint, with two standard deviations of the difference added to one arm

In the first two any significant difference (p < 0.05) is a false one. Assumed: the bank stands for all seeds. The
comparisons share seeds, so that a rate is as uncertain as the bank is small, whatever their number: ``spread`` is its
standard deviation over halves of the bank, drawn again and again, over the root of 2.
The exit code is 1 if a rate of the first two is not within 3 to 7 %, or of the last one below 90 % at n = 10.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metasched.config.schema import Experiment
from metasched.config.writing import to_dict
from metasched.evaluation.config import CompareConfig
from metasched.evaluation.contenders import fresh_seeds
from metasched.evaluation.statistics import counted, paired_difference
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.methods.config import MethodConfig
from metasched.runs.cells import cell_score, played
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig

PAIRS = (5, 10, 16)
ALPHA, EFFECT = 0.05, 2.0
_HALVES = 10

Drawn = tuple[np.ndarray, np.ndarray]
Study = Callable[[np.ndarray, int, np.random.Generator], Drawn]  # (bank [2, seeds], n, random) -> scores of both arms


def experiment(seeds: int, workers: int) -> Experiment:
    """A small network on digits, for long enough to learn something."""
    return Experiment(
        name="false_positives",
        task=TaskConfig(model="mlp", width=16, depth=2, steps=60, batch=32),
        method=MethodConfig(name="ana"),
        compare=CompareConfig(seeds=seeds, baselines=("ana_linear", "ana_cosine")),
        run=RunConfig(workers=workers),
    )


def bank(settings: Experiment) -> np.ndarray:
    """Test scores [schedule, seed]."""
    steps, seeds = settings.task.steps, fresh_seeds(settings.seed, settings.compare.seeds)
    family = hand_coded(settings.method.name)
    controls = [played(settings.problem, family[name], steps) for name in settings.compare.baselines or ()]
    with Pool(settings.run.workers) as pool:
        work = [(settings.problem, own, seed, steps, "test") for own in controls for seed in seeds]
        scores = list(pool.map(cell_score, work))
    return np.array(counted(scores)).reshape(len(controls), len(seeds))


def disjoint(scores: np.ndarray, n: int, random: np.random.Generator) -> Drawn:
    """One schedule in both arms, from other seeds."""
    chosen = random.choice(scores.shape[1], 2 * n, replace=False)
    return scores[0, chosen[:n]], scores[0, chosen[n:]]


def swapped(scores: np.ndarray, n: int, random: np.random.Generator) -> Drawn:
    """Two schedules on the same seeds, by a coin in the one arm or the other."""
    chosen, coin = random.choice(scores.shape[1], n, replace=False), random.integers(0, 2, n)
    return scores[coin, chosen], scores[1 - coin, chosen]


def planted(scores: np.ndarray, n: int, random: np.random.Generator) -> Drawn:
    """As disjoint, and the first arm is better."""
    a, b = disjoint(scores, n, random)
    return a + EFFECT * np.sqrt(2) * scores[0].std(ddof=1), b


STUDIES: dict[str, tuple[Study, float, float]] = {  # and the rates that are right
    "disjoint": (disjoint, 0.03, 0.07),
    "swapped": (swapped, 0.03, 0.07),
    "planted": (planted, 0.9, 1.0),
}


def rate(study: Study, scores: np.ndarray, n: int, comparisons: int, random: np.random.Generator) -> float:
    """Share of comparisons whose difference is significant."""
    found = [paired_difference(*(arm.tolist() for arm in study(scores, n, random))) for _ in range(comparisons)]
    return sum(d.p < ALPHA for d in found) / comparisons


def spread(study: Study, scores: np.ndarray, n: int, comparisons: int, random: np.random.Generator) -> float:
    """Standard deviation of a rate, as far as it comes from the seeds that the bank happens to have."""
    half = scores.shape[1] // 2
    rates = [
        rate(study, scores[:, random.permutation(scores.shape[1])[:half]], n, comparisons, random)
        for _ in range(_HALVES)
    ]
    return float(np.std(rates, ddof=1) / np.sqrt(2))


def measured(scores: np.ndarray, comparisons: int, seed: int) -> list[dict[str, Any]]:
    """A row for each study and number of pairs."""
    rows = []
    for name, (study, low, high) in STUDIES.items():
        for n in PAIRS:
            random = np.random.default_rng([seed, n])
            found = rate(study, scores, n, comparisons, random)
            right = low <= found <= high if name != "planted" or n == 10 else None
            uncertain = spread(study, scores, n, comparisons, random)
            rows.append({"study": name, "n": n, "significant": found, "spread": uncertain, "right": right})
    return rows


def table(told: dict[str, Any]) -> str:
    """The rows in Markdown, with what made them."""
    about, seeds = told["environment"], len(next(iter(told["bank"].values())))
    lines = [
        f"{told['comparisons']} comparisons of each kind from {seeds} seeds of {told['config']['method']['name']} on "
        f"{told['config']['task']['name']}, torch {about['torch']}, {about['cpu']}:",
        "",
        "| study | n | significant | uncertain by |",
        "| --- | --- | --- | --- |",
        *(f"| {r['study']} | {r['n']} | {r['significant']:.3f} | {r['spread']:.3f} |" for r in told["results"]),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=240, help="of the bank [240]")
    parser.add_argument("--comparisons", type=int, default=2000, help="of each study [2000]")
    parser.add_argument("--workers", type=int, default=1, help="processes [1]")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--table", type=Path, help="where it is written as a table")
    asked = parser.parse_args(arguments)
    if asked.seeds < 4 * max(PAIRS):
        parser.error(
            f"--seeds must be {4 * max(PAIRS)} at least: half of a bank is as many as two arms of {max(PAIRS)}"
        )
    settings = experiment(asked.seeds, asked.workers)
    scores = bank(settings)
    rows = measured(scores, asked.comparisons, settings.seed)
    for row in rows:
        print(f"{row['study']:9s} n = {row['n']:2d}: {row['significant']:.3f} +- {row['spread']:.3f} significant")
    told = {
        "what": "share of comparisons with p < 0.05; see scripts/reliability/false_positives.py",
        "comparisons": asked.comparisons,
        "effect": EFFECT,
        "results": rows,
        "bank": {name: own.tolist() for name, own in zip(settings.compare.baselines or (), scores, strict=True)},
        "config": to_dict(settings),
        "environment": environment(),
    }
    if asked.json:
        asked.json.write_text(json_text(told, indent=1) + "\n")
    if asked.table:
        asked.table.write_text(table(told))
    return 0 if all(row["right"] is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
