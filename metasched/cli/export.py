"""``metasched export``."""

from __future__ import annotations

import argparse

from metasched.cli.output import add_output, put_schedule
from metasched.core.errors import MetaschedError


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("run", metavar="RUN", help="run folder, schedule file, or the name of a schedule")
    parser.add_argument("--to", choices=["quantlab"], help="as a controller of QuantLab (methods ana and inq)")
    parser.add_argument("--epochs", type=int, metavar="N", help="with --to quantlab: epochs of the whole run there")
    add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Writes a run's learned schedule, as a schedule file or in the form of QuantLab."""
    if (arguments.to == "quantlab") != (arguments.epochs is not None):
        raise MetaschedError(
            "--epochs", "is required with --to quantlab and has no effect without it", "give both or neither"
        )
    from metasched.commands.export import schedule_of, write_quantlab

    schedule = schedule_of(arguments.run)
    if arguments.to is None:
        put_schedule(schedule, arguments.output)
    else:
        write_quantlab(schedule, arguments.epochs, arguments.output)
