"""``metasched portfolio``."""

from __future__ import annotations

import argparse
from pathlib import Path

from metasched.cli.output import add_json, console_of, print_result


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parts = parser.add_subparsers(dest="part", metavar="build|show", required=True)
    about = "order the schedules of arenas on the validation part by what they add, for each method and its bits"
    build = parts.add_parser("build", help=about, description=about, allow_abbrev=False)
    build.add_argument("given", nargs="+", metavar="F", help="folder of an arena, or its scores.json")
    build.add_argument("--out", required=True, metavar="FILE", help="the portfolio, a JSON file")
    without = "families of tasks (entries of `tasks`) whose scores play no part, to be judged on"
    build.add_argument("--without", nargs="+", action="extend", default=[], metavar="FAMILY", help=without)
    add_json(build)
    about = "show the portfolios of the package, or one by its name or file"
    show = parts.add_parser("show", help=about, description=about, allow_abbrev=False)
    show.add_argument("named", nargs="?", metavar="NAME", help="a portfolio of the package, or the path of a file")
    add_json(show)
    for part in (build, show):
        part.set_defaults(parser=part)


def run(arguments: argparse.Namespace) -> None:
    """Builds or shows portfolios."""
    from metasched.commands import portfolio

    with console_of(arguments) as console:
        if arguments.part == "show":
            result = portfolio.show(arguments.named, console)
        else:
            given, out = [Path(path) for path in arguments.given], Path(arguments.out)
            result = portfolio.build(given, out, console, arguments.without)
    print_result(result, arguments.json)
