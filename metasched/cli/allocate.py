"""``metasched allocate``."""

from __future__ import annotations

import argparse

from metasched.cli.experiment import add_experiment, load
from metasched.cli.output import add_json, console_of, print_result
from metasched.cli.run_folders import add_folder, run_folder


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    add_folder(parser)
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> None:
    """Searches bits by layer under a budget."""
    with console_of(arguments) as console:
        experiment = load(arguments, console)
        from metasched.commands.allocate import allocate

        with run_folder(arguments.command, experiment, arguments) as folder:
            result = allocate(experiment, folder, console)
    print_result({"folder": str(folder.path), **result}, arguments.json)
