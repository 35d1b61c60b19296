"""``metasched show``."""

from __future__ import annotations

import argparse
import shutil
import sys

from metasched.cli.output import add_json, console_of, print_result
from metasched.core.errors import MetaschedError


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    which = "schedule file (JSON), or a name from `metasched list`; hand-coded ones are shown for VGG8"
    parser.add_argument("schedule", metavar="SCHEDULE", help=which)
    parser.add_argument("other", metavar="OTHER", nargs="?", help="a second one, to compare with the first")
    parser.add_argument("--figure", metavar="FILE.svg", help="write the curves of all layers as a figure as well")


def run(arguments: argparse.Namespace) -> None:
    """Shows a schedule, or two beside each other."""
    if arguments.figure is not None and not arguments.figure.endswith(".svg"):
        raise MetaschedError("--figure", f"{arguments.figure} does not end in .svg", "name a file such as a.svg")
    from metasched.exchange.baselines import file_named
    from metasched.exchange.sparklines import ASCII, BLOCKS
    from metasched.exchange.summary import show_both, show_schedule, summarize

    named = [name for name in (arguments.schedule, arguments.other) if name is not None]
    files = [file_named(name) for name in named]
    if arguments.figure is not None:
        from metasched.commands.show import write_figure

        write_figure(arguments.figure, named, files)
    if arguments.json:
        found = [summarize(file) for file in files]
        print_result(found[0] if len(found) == 1 else {"schedules": found}, as_json=True)
        return
    columns = shutil.get_terminal_size().columns
    marks = BLOCKS if _can_write(BLOCKS) else ASCII
    with console_of(arguments) as console:
        if len(files) == 1:
            show_schedule(files[0], console, marks, columns)
        else:
            show_both(files[0], files[1], console, marks, columns)
        if arguments.figure is not None:
            console.note(f"figure: {arguments.figure}")


def _can_write(marks: str) -> bool:
    """Whether standard output has an encoding with these characters."""
    try:
        marks.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
