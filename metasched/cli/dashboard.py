"""``metasched dashboard``."""

from __future__ import annotations

import argparse

from metasched.cli.experiment import add_experiment, load
from metasched.cli.output import add_json, print_result

_DRY = "dry run: nothing is sent to wandb; this is what it would make, with the kind of each panel"


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    parser.add_argument("--entity", help="wandb user or team; not needed with --dry-run")
    parser.add_argument("--dry-run", action="store_true", help="say what it would make, without a network")
    add_experiment(parser)


def run(arguments: argparse.Namespace) -> None:
    """Creates the wandb workspace of the project of an experiment, or says what it would be."""
    if arguments.entity is None and not arguments.dry_run:
        arguments.parser.error("the following arguments are required: --entity (or --dry-run)")
    experiment, entity = load(arguments, many=True), str(arguments.entity or "ENTITY")
    from metasched.tracking.dashboard import build, listing, publish

    if arguments.dry_run:
        lines = listing(build(experiment, entity))
        print_result({"panels": lines}, as_json=True) if arguments.json else print("\n".join([_DRY, *lines]))
        return
    print_result({"workspace": publish(build(experiment, entity))}, arguments.json)
