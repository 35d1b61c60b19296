"""``metasched online``."""

from __future__ import annotations

import argparse

from metasched.cli.experiment import add_experiment, load
from metasched.cli.output import add_json, console_of, print_result
from metasched.cli.run_folders import add_folder, run_folder


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    parser.add_argument("--compare", action="store_true", help="also train from fresh seeds with and without adapting")
    add_folder(parser)
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> None:
    """Trains once, and adapts the schedule during training."""
    with console_of(arguments) as console:
        experiment = load(arguments, console, learns=True)
        from metasched.commands.online import run as train_online

        with run_folder(arguments.command, experiment, arguments) as folder:
            result = train_online(experiment, folder, console, compared=arguments.compare)
    print_result({"folder": str(folder.path), **result}, arguments.json)
