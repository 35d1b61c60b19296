"""Plots the scores of schedules over the compute that was spent on finding them, from one comparison.

    python scripts/compute_curve.py experiments/results/NAME.json docs/images/NAME.png

An arm named ``NAME_STEPS`` was found by NAME in STEPS inner steps; the others have no cost and are drawn as lines.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metasched.tracking.plots import plot_compute

Curves = dict[str, dict[float, list[float]]]  # way to find a schedule -> cost in plain runs -> scores
_FOUND = re.compile(r"(.+)_(\d+)")  # name of the way, and its inner steps


def curves(result: dict[str, Any]) -> tuple[Curves, dict[str, list[float]]]:
    """The scores of found schedules by way and cost, and those of schedules without cost.

    If there are several horizons, the shortest is used, because the search ran at it.
    """
    found: Curves = {}
    free: dict[str, list[float]] = {}
    horizon = min(arm["horizon"] for arm in result["arms"])
    for arm in result["arms"]:
        if arm["horizon"] != horizon:
            continue
        if named := _FOUND.fullmatch(arm["name"]):
            found.setdefault(named[1], {})[int(named[2]) / horizon] = arm["scores"]
        else:
            free[arm["name"]] = arm["scores"]
    return found, free


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the result file and writes the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args(argv)
    result = json.loads(arguments.result.read_text("utf-8"))
    found, free = curves(result)
    learned = {named[1] for name in result["learned"] if (named := _FOUND.fullmatch(name))}
    plot_compute(arguments.output, found, free, learned)


if __name__ == "__main__":
    main()
