"""The argument parser; mistakes raise MetaschedError, with a suggestion for misspelled names."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from metasched.cli.commands import COMMANDS, Command
from metasched.core.errors import MetaschedError


def parse(argv: Sequence[str], arguments: argparse.Namespace) -> Command:
    """Parses a command line and returns its command.

    Args:
        argv: the words after ``metasched``.
        arguments: receives the arguments, the name of the command as ``command``, and its parser as ``parser``.

    Raises:
        MetaschedError: arguments are missing, malformed or unknown.
    """
    from metasched.io.environment import version

    about = "Learns annealing schedules for training quantized networks."
    parser = _Parser(prog="metasched", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"metasched {version() or '(not installed)'}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        added = subparsers.add_parser(name, help=command.about, description=command.about, allow_abbrev=False)
        added.set_defaults(parser=added)
        if name == asked:  # the arguments of an experiment take a third of a second
            command.add(added)

    _, extra = parser.parse_known_args(argv, arguments)
    if extra:
        _refuse(extra, arguments.parser)
    return COMMANDS[arguments.command]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise MetaschedError("", message, f"see `{self.prog} --help`")


def _refuse(extra: list[str], parser: argparse.ArgumentParser) -> NoReturn:
    """Raises the error for unknown arguments."""
    name = next((argument for argument in extra if argument.startswith("-")), extra[0]).split("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise MetaschedError(name, "unknown argument", f"{hint}See `{parser.prog} --help`")
