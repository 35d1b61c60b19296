"""``metasched list``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from textwrap import shorten
from typing import Any

from metasched.cli.output import add_json, console_of, print_result

_SOURCE = 60  # characters of a source that fit beside a name


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_json(parser)
    parser.add_argument("--method", metavar="NAME", help="only schedules that this method plays")


def run(arguments: argparse.Namespace) -> None:
    """Prints the schedules that come with the package, the searches for bits, and the procedures after training."""
    from metasched.exchange.shipped import list_schedules
    from metasched.search.bits.table import BIT_SEARCHES

    found = list_schedules(arguments.method)
    searches = [] if arguments.method else [{"name": x.name, "summary": x.summary} for x in BIT_SEARCHES.values()]
    procedures = [] if arguments.method else _procedures()
    if arguments.json:
        schedules = [asdict(shipped) for shipped in found]
        print_result({"schedules": schedules, "bit_searches": searches, "procedures": procedures}, as_json=True)
        return
    learned = [(s, s.headline) for s in found if s.headline is not None]
    by_hand = [
        (s.name, s.method, shorten(s.summary, _SOURCE, placeholder=" ...")) for s in found if s.kind == "hand-coded"
    ]
    with console_of(arguments) as console:
        if learned:
            columns = ("name", "method", "learned on", "what it does", "score", "no schedule", "float", "n")
            rows = [
                (s.name, s.method, s.task or "", s.summary, h.score, _known(h.floor), _known(h.ceiling), h.n)
                for s, h in learned
            ]
            console.table("learned, with the hardened test score on their own task", columns, rows)
        if by_hand:
            console.table("hand-coded; --json has the whole sources", ("name", "method", "source"), by_hand)
        if searches:
            rows = [tuple(search.values()) for search in searches]
            console.table("searches for bits by layer, of `metasched allocate`", ("name", "what it does"), rows)
        if procedures:
            lines = [(p["name"], p["summary"], ", ".join(p["options"])) for p in procedures]
            console.table("after training: `metasched calibrate`", ("method", "what it does", "options"), lines)


def _procedures() -> list[dict[str, Any]]:
    """The procedures after training, each with the defaults of its options."""
    from metasched.calibration.table import PROCEDURES

    return [{"name": p.name, "summary": p.summary, "options": asdict(p.options())} for p in PROCEDURES.values()]


def _known(score: float | None) -> float | str:
    return "-" if score is None else score
