"""``metasched list``."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from metasched.cli.output import add_json, console_of, print_result


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    parser.add_argument("--method", metavar="NAME", help="only schedules that this method plays")


def run(arguments: argparse.Namespace) -> None:
    """Prints the schedules that come with the package, and the searches for bits."""
    from metasched.exchange.shipped import list_schedules
    from metasched.search.bits.table import BIT_SEARCHES

    found = list_schedules(arguments.method)
    searches = [] if arguments.method else [(row.name, row.summary) for row in BIT_SEARCHES.values()]
    if arguments.json:
        named = {"bit_searches": [{"name": name, "summary": about} for name, about in searches]} if searches else {}
        print_result({"schedules": [asdict(shipped) for shipped in found], **named}, as_json=True)
        return
    learned = [(s, s.headline) for s in found if s.headline is not None]
    by_hand = [(s.name, s.method, s.summary) for s in found if s.kind == "hand-coded"]
    with console_of(arguments) as console:
        if learned:
            columns = ("name", "method", "learned on", "what it does", "score", "no schedule", "float", "n")
            rows = [
                (s.name, s.method, s.task or "", s.summary, h.score, _known(h.floor), _known(h.ceiling), h.n)
                for s, h in learned
            ]
            console.table("learned, with the hardened test score on their own task", columns, rows)
        if by_hand:
            console.table("hand-coded", ("name", "method", "source"), by_hand)
        if searches:
            console.table("searches for bits by layer, of `metasched allocate`", ("name", "what it does"), searches)


def _known(score: float | None) -> float | str:
    return "-" if score is None else score
