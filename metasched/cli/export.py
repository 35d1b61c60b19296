"""``metasched export``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from metasched.cli.output import add_output, put_schedule
from metasched.core.errors import MetaschedError

if TYPE_CHECKING:
    from metasched.exchange.format import ScheduleFile


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("run", metavar="RUN", help="run folder, or a schedule file")
    parser.add_argument("--to", choices=["quantlab"], help="as a controller of QuantLab (methods ana and inq)")
    parser.add_argument("--epochs", type=int, metavar="N", help="with --to quantlab: epochs of the whole run there")
    add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes the learned schedule of a run, as a schedule file or as a controller of QuantLab."""
    from metasched.exchange.schedule_file import read_schedule
    from metasched.io.run_folder import RunFolder

    if (arguments.to == "quantlab") != (arguments.epochs is not None):
        raise MetaschedError(
            "--epochs", "is required with --to quantlab and has no effect without it", "give both or neither"
        )
    path = Path(arguments.run)
    if not os.path.isfile(path):
        path = RunFolder(path).schedule
    if not os.path.isfile(path):
        fix = "give the folder of a finished `metasched train` run"
        raise MetaschedError(arguments.run, f"holds no {path.name}", fix)
    schedule = read_schedule(path)
    if arguments.to is None:
        put_schedule(schedule, arguments.output)
    else:
        _put_quantlab(schedule, arguments.epochs, arguments.output)


def _put_quantlab(schedule: ScheduleFile, epochs: int, output: str | None) -> None:
    from metasched.exchange.quantlab.exporting import export_quantlab
    from metasched.io.atomic import write_atomic
    from metasched.io.json_text import json_text

    written = export_quantlab(schedule, epochs)
    text = json_text(written.config, indent=2) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomic(Path(output), text.encode())
    for fit in written.fits:
        exact = "exact" if fit.largest == 0 else f"off by {fit.largest:.2g} at most, {fit.rms:.2g} root mean square"
        print(f"{fit.layer}: {fit.control} is {exact}", file=sys.stderr)
