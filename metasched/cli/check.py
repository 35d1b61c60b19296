"""``metasched check``."""

from __future__ import annotations

import argparse

from metasched.cli.experiment import add_experiment, load
from metasched.cli.output import add_json, console_of, print_result


def add(parser: argparse.ArgumentParser) -> None:
    """Adds its arguments."""
    add_json(parser)
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> None:
    """Tries an experiment out."""
    experiment = load(arguments)
    from metasched.commands.check import check

    with console_of(arguments) as console:
        result = check(experiment, console)
    print_result(result, arguments.json)
