"""``metasched tune``."""

from __future__ import annotations

import argparse

from metasched.cli.output import add_json, console_of, print_result, say_next
from metasched.cli.run_folders import add_resumable, resumable_folder


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    add_resumable(parser)


def run(arguments: argparse.Namespace) -> None:
    """Tunes a hand-coded family by search, or resumes such a run."""
    with (
        console_of(arguments) as console,
        resumable_folder(arguments.command, arguments, console) as (experiment, folder),
    ):
        from metasched.commands.tune import tune

        result = tune(experiment, folder, console)
    print_result({"folder": str(folder.path), **result}, arguments.json)
    say_next(folder.schedule, arguments.json)
