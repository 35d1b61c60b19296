"""``metasched sensitivity``."""

from __future__ import annotations

import argparse

from metasched.cli.experiment import add_experiment, load
from metasched.cli.output import add_json, console_of, print_result
from metasched.cli.run_folders import add_folder, run_folder


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    which = "hand-coded schedule or a file (default: schedule.start)"
    parser.add_argument("--schedule", metavar="NAME_OR_FILE", help=which)
    parser.add_argument("--runs", type=int, default=8, metavar="N", help="number of differentiated inner runs [8]")
    add_folder(parser)
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> None:
    """Shows when and in which layer a change of a schedule would help."""
    with console_of(arguments) as console:
        experiment = load(arguments, console, learns=True)
        from metasched.commands.sensitivity import sensitivity

        with run_folder(arguments.command, experiment, arguments) as folder:
            result = sensitivity(experiment, arguments.schedule, arguments.runs, folder, console)
    print_result({"folder": str(folder.path), **result}, arguments.json)
