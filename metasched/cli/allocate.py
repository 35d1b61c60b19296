"""``metasched allocate``."""

from __future__ import annotations

import argparse

from metasched.cli.output import add_json, console_of, print_result
from metasched.cli.run_folders import add_resumable, resumable_folder


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    add_resumable(parser)


def run(arguments: argparse.Namespace) -> None:
    """Searches bits by layer under a budget, or resumes such a search."""
    with (
        console_of(arguments) as console,
        resumable_folder(arguments.command, arguments, console, learns=False) as (experiment, folder),
    ):
        from metasched.commands.allocate import allocate

        result = allocate(experiment, folder, console)
    print_result({"folder": str(folder.path), **result}, arguments.json)
