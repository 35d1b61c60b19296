"""``metasched inspect``."""

from __future__ import annotations

import argparse

from metasched.cli.experiment import add_experiment, load
from metasched.cli.output import add_json, console_of, print_result


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    unsaid = "refuse what stays in float though no rule says so"
    parser.add_argument("--strict", action="store_true", help=unsaid)
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints what an experiment quantizes."""
    experiment = load(arguments)
    from metasched.commands.inspect import inspect

    with console_of(arguments) as console:
        result = inspect(experiment, console, strict=arguments.strict)
    if arguments.json:
        print_result(result, as_json=True)
