"""``metasched play``."""

from __future__ import annotations

import argparse

from metasched.cli.experiment import add_experiment, load
from metasched.cli.output import add_json, console_of, print_result
from metasched.cli.run_folders import add_folder, run_folder


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    tries = "how many schedules of the portfolio of the method and its bits are tried, in their order (default: 1)"
    parser.add_argument("--try", dest="tries", type=int, default=1, metavar="K", help=tries)
    which = "a portfolio of the package by name, or a file (default: the package's)"
    parser.add_argument("--portfolio", metavar="NAME_OR_FILE", help=which)
    given = "try these schedules instead, by file or by their name in `metasched list`"
    parser.add_argument("--schedule", nargs="+", action="extend", default=[], metavar="NAME_OR_FILE", help=given)
    add_json(parser)
    add_folder(parser)
    add_experiment(parser, listed=False)


def run(arguments: argparse.Namespace) -> None:
    """Tries schedules on validation, and reports the best one on the test part."""
    with console_of(arguments) as console:
        experiment = load(arguments, console)
        from metasched.commands.play import check_tries, play, words_to_try

        words = words_to_try(experiment, check_tries(arguments.tries), arguments.portfolio, arguments.schedule)
        with run_folder(arguments.command, experiment, arguments) as folder:
            result = play(experiment, words, folder, console)
    print_result({"folder": str(folder.path), **result}, arguments.json)
