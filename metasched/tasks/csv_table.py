"""A CSV file as a table of texts, and its columns as numbers or categories."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metasched.core.errors import MetaschedError, did_you_mean
from metasched.io.reading import read_regular

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null"})  # cells without a value, in lower case
_DELIMITERS = ",;\t"
_LARGEST_FILE = 256 * 2**20  # bytes
_MOST_CATEGORIES = 256  # of a column; more are names or identifiers
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_FIX = "set task.root to a CSV file in UTF-8, with the names of the columns in its first line"


@dataclass(frozen=True)
class Table:
    """The cells of a file, without spaces around them.

    Attributes:
        names: of the columns, all different.
        rows: one tuple of cells a row, each as long as ``names``.
        lines: line of the file at which each row ends.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def column(self, name: str) -> list[str]:
        """The cells of a column."""
        i = self.names.index(name)
        return [row[i] for row in self.rows]

    def known(self, name: str, path: str) -> str:
        """The name of a column.

        Raises:
            MetaschedError: there is no such column; ``path`` is the setting that names it.
        """
        if name not in self.names:
            listed = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
            hint = did_you_mean(name, self.names)
            raise MetaschedError(path, f"the file has no column {name!r}", f"{hint}its columns are {listed}")
        return name


def read_table(path: str) -> Table:
    """The table of a CSV file in UTF-8, whose first line names the columns.

    The delimiter is the one of comma, semicolon and tab that the first line has most often. Empty lines are left out.

    Raises:
        MetaschedError: no such file, another encoding, names that are missing or repeated, a row of another length, or
            no row at all.
    """
    content = read_regular(os.path.expanduser(path), _LARGEST_FILE, _FIX)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MetaschedError("task.root", f"{path} is not UTF-8 (byte {error.start})", _FIX) from None
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)  # the first of equals: the comma
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if row:
                rows.append(tuple(cell.strip() for cell in row))
                lines.append(reader.line_num)
    except csv.Error as error:
        raise MetaschedError(f"{path}: line {reader.line_num}", f"is not CSV ({error})", _FIX) from None
    if len(rows) < 2:
        raise MetaschedError("task.root", f"{path} has no row below the names of its columns", _FIX)
    names = rows[0]
    if not all(names) or len({*names}) < len(names):
        twice = next((name for name in names if name and names.count(name) > 1), "")
        problem = f"{path} names the column {twice!r} twice" if twice else f"{path} has a column without a name"
        raise MetaschedError("task.root", problem, "give each column a name of its own in the first line")
    for row, line in zip(rows[1:], lines[1:], strict=True):
        if len(row) != len(names):
            problem = f"has {len(row)} cells, and the first line names {len(names)} columns"
            raise MetaschedError(f"{path}: line {line}", problem, "mend or remove the line")
    return Table(names, tuple(rows[1:]), tuple(lines[1:]))


def numbers(table: Table, name: str) -> np.ndarray | None:
    """A column as float64 [N], NaN where the value is missing; None for a column of texts.

    Raises:
        MetaschedError: a column most of whose cells are numbers has a text, a number is infinite, or no cell has a
            value.
    """
    cells = table.column(name)
    given = [cell for cell in cells if not is_missing(cell)]
    if not given:
        raise MetaschedError(f"task.root: column {name}", "has no value", "add it to task.drop")
    texts = [cell for cell in given if not _NUMBER.fullmatch(cell)]
    if 2 * len(texts) >= len(given):
        return None
    if texts:
        line = table.lines[cells.index(texts[0])]
        problem = f"holds numbers, and {texts[0][:40]!r} in line {line}"
        raise MetaschedError(f"task.root: column {name}", problem, "mend the line, or add the column to task.drop")
    found = np.array([math.nan if is_missing(cell) else float(cell) for cell in cells])
    if np.isinf(found).any():
        line = table.lines[int(np.isinf(found).argmax())]
        problem = f"has a number in line {line} that is too large for a float"
        raise MetaschedError(f"task.root: column {name}", problem, "mend the line, or add the column to task.drop")
    return found


def categories(name: str, cells: Sequence[str]) -> list[str]:
    """The different texts of some cells of a column, sorted, without missing ones.

    Raises:
        MetaschedError: there are so many that they must be names or identifiers.
    """
    found = sorted({cell for cell in cells if not is_missing(cell)})
    if len(found) > _MOST_CATEGORIES:
        problem = f"has {len(found)} different texts, and at most {_MOST_CATEGORIES} are one-hot encoded"
        raise MetaschedError(f"task.root: column {name}", problem, "add it to task.drop")
    return found


def is_missing(cell: str) -> bool:
    """Whether a cell has no value.

    >>> is_missing("NaN"), is_missing(""), is_missing("0")
    (True, True, False)
    """
    return cell.lower() in MISSING
