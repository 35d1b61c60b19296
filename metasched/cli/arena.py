"""``metasched arena``."""

from __future__ import annotations

import argparse
from pathlib import Path

from metasched.cli.experiment import add_experiment, load
from metasched.cli.output import add_json, console_of, print_result


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parts = parser.add_subparsers(dest="part", metavar="run|report", required=True)
    about = "play all arms on all tasks; what the folder holds already is not trained again"
    run_ = parts.add_parser("run", help=about, description=about, allow_abbrev=False)
    run_.add_argument("--folder", required=True, help="where the scores are written; a stopped arena goes on there")
    known = "scores of other arenas (folders, or their scores.json), which are not trained again"
    run_.add_argument("--cells", nargs="+", action="extend", default=[], metavar="FILE", help=known)
    add_json(run_)
    add_experiment(run_, listed=False)
    run_.usage = "%(prog)s ARENA.yaml --folder F [options] [--section.field VALUE ...]"
    about = "join the scores of arenas, and write tables, a page and a figure; nothing is trained"
    report = parts.add_parser("report", help=about, description=about, allow_abbrev=False)
    report.add_argument("given", nargs="+", metavar="F", help="folder of an arena, or its scores.json")
    report.add_argument("-o", "--output", metavar="FOLDER", help="where the page is written (default: the first F)")
    other = "arms that all others are held against (default: floor, no schedule)"
    report.add_argument("--against", nargs="+", action="extend", default=[], metavar="ARM", help=other)
    add_json(report)
    for part in (run_, report):
        part.set_defaults(parser=part)


def run(arguments: argparse.Namespace) -> None:
    """Plays an arena, or reports what some have left."""
    with console_of(arguments) as console:
        if arguments.part == "report":
            from metasched.commands.arena import report

            output = Path(arguments.output) if arguments.output else None
            result = report([Path(p) for p in arguments.given], output, arguments.against, console)
        else:
            experiment = load(arguments, console, many=True)
            from metasched.commands.arena import run as play

            own = f"metasched arena run {arguments.config} --folder {arguments.folder}"
            arguments.go_on = own
            result = play(experiment, Path(arguments.folder), console, [Path(p) for p in arguments.cells])
    print_result(result, arguments.json)
