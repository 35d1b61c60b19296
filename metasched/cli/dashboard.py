"""``metasched dashboard``."""

from __future__ import annotations

import argparse

from metasched.cli.experiment import add_experiment, load
from metasched.cli.output import add_json, print_result


def add(parser: argparse.ArgumentParser) -> None:
    """Adds its arguments."""
    add_json(parser)
    parser.add_argument("--entity", required=True, help="wandb user or team")
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> None:
    """Makes the wandb workspace of an experiment's project."""
    experiment = load(arguments)
    from metasched.tracking.dashboard import publish

    print_result({"workspace": publish(experiment, arguments.entity)}, arguments.json)
