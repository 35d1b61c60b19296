"""Tables of named rows: what each row has, and how one from outside the package joins a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol, TypeVar

from metasched.core.errors import MetaschedError, unknown_name


class Row(Protocol):
    """What rows of all tables have."""

    @property
    def name(self) -> str:
        """The name that an experiment chooses it by."""
        ...

    @property
    def summary(self) -> str:
        """Description in a few words."""
        ...

    @property
    def origin(self) -> str:
        """Where its code is, as ``package.module.name``."""
        ...


R = TypeVar("R")


def from_outside(row: Row) -> bool:
    """Whether its code is not in this package, so that its name does not say what it is."""
    return not row.origin.startswith("metasched.")


def find_row(table: Mapping[str, R], path: str, name: object) -> R:
    """The row of this name.

    Args:
        table: by name.
        path: the setting that chooses from the table.
        name: what was chosen.

    Raises:
        MetaschedError: there is none.
    """
    if not isinstance(name, str) or name not in table:
        raise unknown_name(path, str(name), table)
    return table[name]


def check_row(table: Mapping[str, Row], path: str, row: Row) -> None:
    """Refuses a row that cannot join a table. The same row again is accepted: a module may be imported twice.

    Args:
        table: by name.
        path: the setting that chooses from the table.
        row: the new one.

    Raises:
        MetaschedError: an invalid name, or one that another row has.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", row.name):
        raise MetaschedError(
            path, f"{row.name!r} is not a valid name", "use a to z, 0 to 9 and _, starting with a letter"
        )
    taken = table.get(row.name)
    if taken is not None and taken.origin != row.origin:
        raise MetaschedError(path, f"{row.name!r} is already used by {taken.origin}", "choose another name")
