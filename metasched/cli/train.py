"""``metasched train``."""

from __future__ import annotations

import argparse

from metasched.cli.output import add_json, console_of, print_result, say_next
from metasched.cli.run_folders import add_resumable, resumable_folder


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    add_resumable(parser)


def run(arguments: argparse.Namespace) -> None:
    """Learns a schedule and compares it, or resumes such a run."""
    with (
        console_of(arguments) as console,
        resumable_folder(arguments.command, arguments, console, many=True) as (experiment, folder),
    ):
        from metasched.commands.train import train
        from metasched.commands.train_many import train_many

        result = (train_many if experiment.tasks.entries else train)(experiment, folder, console)
    print_result({"folder": str(folder.path), **result}, arguments.json)
    say_next(folder.schedule, arguments.json)
