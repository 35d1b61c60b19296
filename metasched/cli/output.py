"""The output of a command: progress, result and schedule files."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from metasched.core.errors import printable

if TYPE_CHECKING:
    from metasched.exchange.format import ScheduleFile
    from metasched.tracking.console import Console


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the option for a result as JSON."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON; everything else goes to stderr")


def console_of(arguments: argparse.Namespace) -> closing[Console]:
    """The console of a command: on stdout, or on stderr if the result is JSON."""
    from metasched.tracking.console import open_console

    return closing(open_console(sys.stderr if arguments.json else sys.stdout))


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """Prints a result as JSON, or its numbers and texts, one per line."""
    from metasched.io.json_text import json_text

    if as_json:
        print(json_text(result, indent=2))
    else:
        for key, value in result.items():
            if not isinstance(value, dict | list):  # structured values have been shown as tables
                shown = float(f"{value:.6g}") if isinstance(value, float) else value  # all digits are in the JSON
                text = value if isinstance(value, str) else json_text(shown).strip('"')
                print(f"{key}: {printable(text)}")


def say_next(schedule: Path, as_json: bool) -> None:
    """Prints what can be done with the schedule that a run has written."""
    if schedule.exists() and not as_json:
        path = str(schedule)
        print(f"next: metasched show {printable(quote(path))}\n      metasched.load({path!r}), in Python")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the output file of a schedule."""
    parser.add_argument("-o", "--output", metavar="FILE", help="default: standard output")


def put_schedule(schedule: ScheduleFile, output: str | None) -> None:
    """Writes a schedule to a file, or to standard output if ``output`` is None."""
    from metasched.exchange.schedule_file import dumps, write_schedule

    if output is None:
        sys.stdout.write(dumps(schedule))
    else:
        write_schedule(output, schedule)
