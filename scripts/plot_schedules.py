"""Plots one control of several schedule files side by side.

    python scripts/plot_schedules.py experiments/baselines/inq_linear.json metasched/data/learned/fashion_inq.json \
        --control freeze_fraction -o OUT.png

Each panel is a file, each curve a layer of the first file; the other files are played on these layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from metasched import PlayedSchedule, read_schedule
from metasched.core.errors import MetaschedError
from metasched.evaluation.contenders import name_of
from metasched.tracking.plots import plot_schedule

POINTS = 201


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the files and plots them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("schedules", nargs="+", type=Path)
    parser.add_argument("--control", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    played: dict[str, PlayedSchedule] = {}
    for path in arguments.schedules:
        try:
            schedule = PlayedSchedule(read_schedule(path))
        except MetaschedError as error:
            parser.error(str(error))
        if arguments.control not in schedule.file.values:
            parser.error(f"{path} has no control {arguments.control}; it has {', '.join(schedule.file.values)}")
        if name_of(path) in played:
            parser.error(f"{path} is a second schedule named {name_of(path)!r}: rename one of the files")
        played[name_of(path)] = schedule
    layers = next(iter(played.values())).layers
    progress = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    values = {name: schedule(progress, layers)[arguments.control] for name, schedule in played.items()}
    plot_schedule(arguments.output, values, [layer.name for layer in layers], progress)


if __name__ == "__main__":
    main()
