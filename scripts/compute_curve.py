"""Plots what schedules are worth against the compute that found them, from one comparison.

    python scripts/compute_curve.py experiments/results/NAME.json docs/images/NAME.png

An arm named ``WHAT_STEPS`` was found by WHAT in STEPS inner steps; the others cost nothing, and are drawn as lines.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metasched.tracking.plots import plot_compute

Curves = dict[str, dict[float, list[float]]]  # way to find a schedule -> plain runs that it cost -> scores
_FOUND = re.compile(r"(.+)_(\d+)")  # what found the schedule, and in how many inner steps


def curves(result: dict[str, Any]) -> tuple[Curves, dict[str, list[float]]]:
    """The scores of what was found, by what and for how much; and of schedules that cost nothing.

    Of several horizons the shortest counts: it is the one that was searched at.
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
    """Read the result file, write the picture."""
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
