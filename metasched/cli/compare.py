"""``metasched compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from metasched.cli.output import add_json, console_of, print_result
from metasched.cli.run_folders import add_resumable, resumable_folder


def add(parser: argparse.ArgumentParser) -> None:
    """Adds its arguments."""
    add_json(parser)
    also = "also these schedules"
    parser.add_argument("--schedule", nargs="+", action="extend", default=[], metavar="FILE", help=also)
    arm = "also this arm, of any method: a schedule and fields in which its experiment differs (repeatable)"
    words = ("NAME", "SCHEDULE [FIELD=VALUE ...]")
    parser.add_argument("--arm", nargs="+", action="append", default=[], metavar=words, help=arm)
    reuse = "training runs that these runs have compared are not done again"
    parser.add_argument("--reuse", nargs="+", action="extend", default=[], metavar="RUN", help=reuse)
    add_resumable(parser)


def run(arguments: argparse.Namespace) -> None:
    """Plays schedules on the same seeds, or goes on with that."""
    with (
        resumable_folder(arguments.command, arguments, learns=False) as (experiment, folder),
        console_of(arguments) as console,
    ):
        from metasched.commands.compare import run as compare

        schedules, reuse = [Path(path) for path in arguments.schedule], [Path(path) for path in arguments.reuse]
        result = compare(experiment, schedules, folder, console, reuse, arguments.arm)
    print_result({"folder": str(folder.path), **result}, arguments.json)
