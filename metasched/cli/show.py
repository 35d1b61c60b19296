"""``metasched show``."""

from __future__ import annotations

import argparse

from metasched.cli.output import add_json, console_of, print_result


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    which = "schedule file (JSON), or a name from `metasched list`; hand-coded ones are shown for VGG8"
    parser.add_argument("schedule", metavar="SCHEDULE", help=which)


def run(arguments: argparse.Namespace) -> None:
    """Prints a summary of a schedule file."""
    from metasched.exchange.baselines import file_named
    from metasched.exchange.summary import show_schedule, summarize

    schedule = file_named(arguments.schedule)
    if arguments.json:
        print_result(summarize(schedule), as_json=True)
    else:
        with console_of(arguments) as console:
            show_schedule(schedule, console)
