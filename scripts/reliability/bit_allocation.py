#!/usr/bin/env python
"""Searches for bits against the exhaustive optimum, and bits by channel against bits by layer.

    python scripts/reliability/bit_allocation.py --json experiments/results/reliability_bit_allocation.json \
        --table docs/tables/reliability_bit_allocation.md
    python scripts/reliability/bit_allocation.py --bits 4 \
        --json experiments/results/reliability_bit_allocation_4.json --table docs/tables/reliability_bit_allocation_4.md

The network is an MLP of four layers on the digits, trained in float, with weights rounded to nearest on 2 to 8 bits at
one least-squares scale a layer; the score of an allocation is minus its loss on meta-validation, and the budget is the
size at 3 bits (or --bits) in all layers. The rank of a search is the number of allocations within the budget that are
strictly better than what it found: 0 is the optimum.

    held to:   random search with 150 proposals is among the best five (median rank below 5), for each network;
               at equal mean bits, the best bits by channel have no larger error of the weights than the best by layer
    reported:  greedy, knapsack, equal bits, TPE, and HAQ's DDPG at several decays of its noise, which need not win
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metasched.commands.allocate import float_network, rounded_score
from metasched.config.load import experiment_of
from metasched.config.schema import Experiment
from metasched.core.randomness import derive_seed
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.search.bits.channels import ChannelBits, with_channels
from metasched.search.bits.knapsack import least_loss
from metasched.search.bits.problem import BitProblem, Choice, Judge
from metasched.search.bits.resources import bit_problem
from metasched.search.bits.table import BIT_SEARCHES
from metasched.search.config import AllocateConfig
from metasched.training.problem import ingredients

EVALUATIONS = 150
TOP = 5
DECAYS = (0.97, 0.99, 1.0)
BITS = (2, 3, 4, 5, 6, 7, 8)
MEANS = (2.5, 3.0, 4.0, 5.0)


def experiment(width: int, steps: int, bits: int, seed: int) -> Experiment:
    """The experiment whose float network is rounded."""
    return experiment_of(
        {
            "name": "bit_allocation",
            "seed": seed,
            "task": {"name": "digits", "model": "mlp", "width": width, "depth": 3, "steps": steps, "batch": 64},
            "optimizer": {"name": "adam", "lr": 0.005, "decay": "cosine"},
            "method": {"name": "ste", "levels": "balanced4", "scale": "least_squares", "activation_levels": None},
            "quantize": {"last": True},
            "allocate": {"bits": list(BITS), "budget": f"{bits} bits"},
        }
    )


def ranked(settings: Experiment, bits: int, searches: int) -> dict[str, Any]:
    """The ranks of all searches on one network, from several seeds of the search each, and its errors by channel."""
    config = settings.problem
    model = float_network(config, derive_seed(settings.seed, "allocate float"))
    _, recipe, example = ingredients(config)
    problem = bit_problem(model, recipe, example, settings.allocate)
    rounded = rounded_score(config, model, problem)
    known: dict[Choice, float] = {}

    def score(choice: Choice) -> float:
        if choice not in known:
            known[choice] = rounded(choice)
        return known[choice]

    every = sorted((score(choice) for choice in problem.feasible()), reverse=True)

    def rank(search: str, seed: int, **more: Any) -> int:
        judge = Judge(problem, score)
        chosen = AllocateConfig(search=search, evaluations=EVALUATIONS, **more)
        BIT_SEARCHES[search].run(problem, judge, chosen, seed)
        return sum(other > judge.best.score for other in every)

    ranks = {"greedy": [rank("greedy", 0)], "knapsack": [rank("knapsack", 0)]}
    ranks["equal bits"] = [sum(other > score((BITS.index(bits),) * 4) for other in every)]
    for name in ("random", "tpe"):
        ranks[name] = [rank(name, seed) for seed in range(searches)]
    for decay in DECAYS:
        ranks[f"haq, decay {decay}"] = [rank("haq", seed, exploration_decay=decay) for seed in range(searches)]
    told = {"seed": settings.seed, "allocations": len(BITS) ** 4, "feasible": len(every), "ranks": ranks}
    return {
        **told,
        "best": every[0],
        "equal": score((BITS.index(bits),) * 4),
        "errors": errors(settings, problem, model),
    }


def errors(settings: Experiment, problem: BitProblem, model: Any) -> list[dict[str, float]]:
    """Squared errors of all weights at several mean bits: the best by layer, and the best by channel."""
    _, recipe, example = ingredients(settings.problem)
    problem = with_channels(problem, model, recipe, example, settings.allocate)
    assert problem.channels is not None
    sizes = [layer.num_weights for layer in problem.layers]
    of_rows = [n // len(c.errors) for n, c in zip(sizes, problem.channels, strict=True)]
    layers = [c.errors.sum(0).tolist() for c in problem.channels]
    best = [ChannelBits(c.errors, BITS).least for c in problem.channels]
    found = []
    for mean in MEANS:
        budget = mean * sum(sizes)
        by_layer = total(layers, [[n * b for b in BITS] for n in sizes], budget)
        counts = [range(len(b)) for b in best]
        costs = [
            [row * (BITS[0] * len(c.errors) + more) for more in count]
            for row, c, count in zip(of_rows, problem.channels, counts, strict=True)
        ]
        by_channel = total([b.tolist() for b in best], costs, budget)
        found.append({"mean bits": mean, "by layer": by_layer, "by channel": by_channel})
    return found


def total(losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float) -> float:
    """The least sum of losses within the budget."""
    return float(sum(row[k] for row, k in zip(losses, least_loss(losses, costs, budget * (1 + 1e-9)), strict=True)))


def right(results: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """What is held to."""
    return {
        "random in the top 5": all(statistics.median(r["ranks"]["random"]) < TOP for r in results),
        "channels no worse than layers": all(
            e["by channel"] <= e["by layer"] * (1 + 1e-12) for r in results for e in r["errors"]
        ),
    }


def table(told: dict[str, Any]) -> str:
    """The results in Markdown, with what made them."""
    about, results = told["environment"], told["results"]
    names = [f"network {i + 1}, {r['feasible']} fit" for i, r in enumerate(results)]
    lines = [
        f"Digits, MLP of four layers of width {told['width']}, {told['allocations']} allocations of 2 to 8 bits, of "
        f"the size of {told['budget']} at most; {EVALUATIONS} proposals, {told['searches']} seeds of each search, "
        f"torch {about['torch']}, {about['cpu']}. Rank, median (least to most):",
        "",
        f"| search | {' | '.join(names)} |",
        f"| --- |{' --- |' * len(names)}",
    ]
    for search in results[0]["ranks"]:
        lines.append(f"| {search} | {' | '.join(_shown(r['ranks'][search]) for r in results)} |")
    lines += [
        "",
        "Squared error of all weights, of the best bits by channel over that of the best bits by layer; each channel "
        "has a scale of its own in both:",
        "",
        f"| mean bits | {' | '.join(f'network {i + 1}' for i in range(len(results)))} |",
        f"| --- |{' --- |' * len(results)}",
    ]
    for k, mean in enumerate(MEANS):
        cells = [f"{r['errors'][k]['by channel'] / r['errors'][k]['by layer']:.3f}" for r in results]
        lines.append(f"| {mean:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(ranks: Sequence[int]) -> str:
    """The median of ranks, and the least and the most."""
    return f"{statistics.median(ranks):g} ({min(ranks)} to {max(ranks)})" if len(ranks) > 1 else str(ranks[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=3, help="float networks, from seeds of their own [3]")
    parser.add_argument("--searches", type=int, default=3, help="seeds of each search on a network [3]")
    parser.add_argument("--width", type=int, default=24, help="of the MLP [24]")
    parser.add_argument("--steps", type=int, default=400, help="of training in float [400]")
    parser.add_argument("--bits", type=int, default=3, choices=BITS, help="in all layers, that the budget is for [3]")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--table", type=Path, help="where it is written as a table")
    asked = parser.parse_args(arguments)
    settings = [experiment(asked.width, asked.steps, asked.bits, seed) for seed in range(asked.networks)]
    results = [ranked(each, asked.bits, asked.searches) for each in settings]
    told = {
        "what": "ranks of searches for bits among all allocations that fit; see scripts/reliability/bit_allocation.py",
        "command": " ".join(["python scripts/reliability/bit_allocation.py", *map(str, arguments or sys.argv[1:])]),
        "n": asked.networks,
        "searches": asked.searches,
        "width": asked.width,
        "steps": asked.steps,
        "budget": f"{asked.bits} bits",
        "allocations": len(BITS) ** 4,
        "results": results,
        "held": (held := right(results)),
        "environment": environment(),
    }
    print(table(told), end="")
    for name, holds in held.items():
        print(f"{name}: {'yes' if holds else 'NO'}")
    if asked.json:
        asked.json.write_text(json_text(told, indent=1) + "\n")
    if asked.table:
        asked.table.write_text(table(told))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
