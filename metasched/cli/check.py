"""``metasched check``."""

from __future__ import annotations

import argparse

from metasched.cli.experiment import add_experiment, load
from metasched.cli.output import add_json, console_of, print_result


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> None:
    """Checks an experiment and its hypergradients."""
    experiment = load(arguments)
    from metasched.commands.check import check

    with console_of(arguments) as console:
        result = check(experiment, console)
    print_result(result, arguments.json)
