"""``metasched show``."""

from __future__ import annotations

import argparse

from metasched.cli.output import add_json, console_of, print_result


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    parser.add_argument("schedule", metavar="SCHEDULE", help="schedule file (JSON)")


def run(arguments: argparse.Namespace) -> None:
    """Prints a summary of a schedule file."""
    from metasched.exchange.schedule_file import read_schedule
    from metasched.exchange.summary import show_schedule, summarize

    schedule = read_schedule(arguments.schedule)
    if arguments.json:
        print_result(summarize(schedule), as_json=True)
    else:
        with console_of(arguments) as console:
            show_schedule(schedule, console)
