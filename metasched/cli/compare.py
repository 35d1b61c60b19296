"""``metasched compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from metasched.cli.output import add_json, console_of, print_result
from metasched.cli.run_folders import add_resumable, resumable_folder


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    also = "schedules to compare as well, by file or by their name in `metasched list`"
    parser.add_argument("--schedule", nargs="+", action="extend", default=[], metavar="NAME_OR_FILE", help=also)
    arm = "an arm of any method to compare as well: a schedule, and fields of the experiment to change (repeatable)"
    words = ("NAME", "SCHEDULE [FIELD=VALUE ...]")
    parser.add_argument("--arm", nargs="+", action="append", default=[], metavar=words, help=arm)
    reuse = "run folders whose training runs are reused instead of repeated"
    parser.add_argument("--reuse", nargs="+", action="extend", default=[], metavar="RUN", help=reuse)
    add_resumable(parser)


def run(arguments: argparse.Namespace) -> None:
    """Compares schedules on the same seeds, or resumes a comparison."""
    with (
        console_of(arguments) as console,
        resumable_folder(arguments.command, arguments, console, learns=False) as (experiment, folder),
    ):
        from metasched.commands.compare import run as compare

        reuse = [Path(path) for path in arguments.reuse]
        result = compare(experiment, arguments.schedule, folder, console, reuse, arguments.arm)
    print_result({"folder": str(folder.path), **result}, arguments.json)
