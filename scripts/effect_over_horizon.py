#!/usr/bin/env python
"""Plots what schedules add to a floor over the number of steps, from kept comparisons.

    python scripts/effect_over_horizon.py OUTPUT.png --line NAME RESULT.json:ARM:FLOOR[:STEPS] ... --line ...

Each point is the mean difference of an arm and a floor of one comparison over its paired seeds, with its 95 % interval.
STEPS chooses among several horizons; by default the shortest. ``docs/reproducing.md`` has the command of the figure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from metasched import MetaschedError, paired_difference


class Point(NamedTuple):
    """An effect: after so many steps, its mean and its interval."""

    steps: int
    mean: float
    low: float
    high: float


def point(result: Mapping[str, Any], arm: str, floor: str, steps: int | None = None) -> Point:
    """The effect of an arm over a floor in a result file's content, at a horizon or the shortest one.

    Raises:
        MetaschedError: there is no such arm.
    """
    horizon = min(a["horizon"] for a in result["arms"]) if steps is None else steps
    scores = {a["name"]: a["scores"] for a in result["arms"] if a["horizon"] == horizon}
    for name in (arm, floor):
        if name not in scores:
            raise MetaschedError(name, f"is no arm after {horizon} steps", f"there are {', '.join(scores) or 'none'}")
    found = paired_difference(scores[arm], scores[floor])
    return Point(horizon, found.mean, found.low, found.high)


def read(given: str) -> Point:
    """The point of ``RESULT.json:ARM:FLOOR[:STEPS]``.

    Raises:
        MetaschedError: it has another form.
    """
    file, *names = given.split(":")
    if len(names) not in (2, 3) or not all(steps.isdigit() for steps in names[2:]):
        raise MetaschedError(given, "names no point", "give RESULT.json:ARM:FLOOR or RESULT.json:ARM:FLOOR:STEPS")
    return point(json.loads(Path(file).read_text("utf-8")), names[0], names[1], *map(int, names[2:]))


def draw(path: Path, lines: Mapping[str, Sequence[Point]]) -> None:
    """Draws one line for each name, with intervals, in percentage points over a logarithmic number of steps."""
    figure, axis = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    axis.axhline(0, color="0.4", linewidth=1)
    for i, (name, points) in enumerate(lines.items()):
        steps, means = [p.steps * (1 + 0.02 * (i % 5 - 2)) for p in points], [100 * p.mean for p in points]
        down, up = ([100 * (p.mean - p.low) for p in points], [100 * (p.high - p.mean) for p in points])
        axis.errorbar(steps, means, [down, up], marker="o", capsize=3, label=name, color=f"C{i}")
    ticks = sorted({p.steps for points in lines.values() for p in points})
    axis.set(xscale="log", xlabel="steps of training", ylabel="score over the tuned floor, points")
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the results and writes the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--line", nargs="+", action="append", required=True, metavar=("NAME", "POINT"))
    arguments = parser.parse_args(argv)
    try:
        draw(arguments.output, {name: [read(p) for p in points] for name, *points in arguments.line})
    except (MetaschedError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
