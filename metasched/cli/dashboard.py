"""``metasched dashboard``."""

from __future__ import annotations

import argparse

from metasched.cli.experiment import add_experiment, load
from metasched.cli.output import add_json, print_result


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    parser.add_argument("--entity", required=True, help="wandb user or team")
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> None:
    """Creates the wandb workspace of the project of an experiment."""
    experiment = load(arguments, many=True)
    from metasched.tracking.dashboard import build, publish

    print_result({"workspace": publish(build(experiment, arguments.entity))}, arguments.json)
