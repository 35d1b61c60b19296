"""The schedules that come with the package: hand-coded ones, and learned ones in ``metasched/data``.

A word names a schedule or a file: with a path separator or the ending ``.json`` it is the path of a file, and otherwise
the name of a schedule, whatever files there are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from metasched.core.errors import MetaschedError, did_you_mean, unknown_name
from metasched.io.strict_json import parse

_DATA = Path(__file__).parents[1] / "data"
_SEPARATORS = tuple(mark for mark in (os.sep, os.altsep) if mark)


@dataclass(frozen=True)
class Headline:
    """What was measured of a learned schedule on its own task, and what its gain is to be judged by.

    Attributes:
        result: the result file in ``experiments/results``, without ``.json``.
        arm: the name of the schedule there.
        steps: T, training steps.
        n: paired seeds.
        score: mean hardened test score.
        floor: that of no schedule (STE); None where it was not measured.
        ceiling: that of the float network; None likewise.
    """

    result: str
    arm: str
    steps: int
    n: int
    score: float
    floor: float | None
    ceiling: float | None


@dataclass(frozen=True, repr=False)
class ShippedSchedule:
    """A schedule that comes with the package.

    Attributes:
        name: what ``metasched.load`` takes.
        method: name of the method that plays it.
        kind: ``hand-coded`` or ``learned``.
        summary: one line; the source of a hand-coded one.
        task: what it was learned on; None for a hand-coded one.
        headline: what was measured of it; None for a hand-coded one.
    """

    name: str
    method: str
    kind: Literal["hand-coded", "learned"]
    summary: str
    task: str | None = None
    headline: Headline | None = None

    def __repr__(self) -> str:
        about = self.kind if self.task is None else f"{self.kind} on {self.task}"
        return f"ShippedSchedule({self.name}: {about}, method {self.method})"


def list_schedules(method: str | None = None) -> tuple[ShippedSchedule, ...]:
    """The schedules that come with the package, learned ones first.

    Args:
        method: only those that this method plays.

    Raises:
        MetaschedError: no method of that name.

    >>> [shipped.name for shipped in list_schedules("rates")]
    ['rates_rising', 'rates_constant', 'rates_late']
    """
    from metasched.schedules.table import families, hand_coded

    if method is not None and method not in families():
        raise unknown_name("method", method, families())
    learned = [
        ShippedSchedule(name, row["method"], "learned", row["summary"], row["task"], Headline(**row["headline"]))
        for name, row in _index().items()
    ]
    by_hand = [
        ShippedSchedule(name, family, "hand-coded", schedule.citation)
        for family in families()
        for name, schedule in hand_coded(family).items()
    ]
    return tuple(shipped for shipped in (*learned, *by_hand) if method in (None, shipped.method))


def learned_names(method: str) -> list[str]:
    """The names of the learned schedules for a method that come with the package."""
    return [name for name, row in _index().items() if row["method"] == method]


def file_of(named: str | os.PathLike[str]) -> Path | None:
    """The file that a word means: a path itself, or that of a learned schedule; None for all other names.

    >>> file_of("runs/a/schedule.json").name, file_of("digits_inq").name, file_of("inq_linear")
    ('schedule.json', 'digits_inq.json', None)
    """
    if not isinstance(named, str | os.PathLike):
        problem = f"is a {type(named).__name__}"
        raise MetaschedError("schedule", problem, "give the name of a schedule, or the path of a file")
    if not isinstance(named, str) or named.endswith(".json") or any(mark in named for mark in _SEPARATORS):
        return Path(named)
    return _DATA / "learned" / _index()[named]["file"] if named in _index() else None


def is_local_file(named: str) -> str:
    """What an error about an unknown name adds where the current folder has a file of that name; empty otherwise."""
    return f"the file is {os.path.join(os.curdir, named)}; " if os.path.isfile(named) else ""


def unknown_schedule(path: str, named: str) -> MetaschedError:
    """The error for a word that is neither the name of a schedule of the package nor the path of a file."""
    hint = is_local_file(named) + did_you_mean(named, [shipped.name for shipped in list_schedules()])
    fix = f"{hint}`metasched list` shows the names; a file has a path separator or ends in .json"
    return MetaschedError(path, f"{named!r} is not the name of a schedule", fix)


@cache
def _index() -> Mapping[str, Any]:
    """Name -> row of the learned schedules."""
    tree = parse((_DATA / "index.json").read_bytes())
    assert isinstance(tree, dict)
    return tree
