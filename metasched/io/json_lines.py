"""The JSON lines of the run folder, which every run writes, with or without a tracking service."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.io.json_text import json_text
from metasched.io.reading import read_regular

MAX_BYTES = 2**32


class JsonLines:
    """An append-only file with one JSON object per line, written at each call; ``cut_back`` removes late lines.

    A line is a row of metrics, ``{"artifact": name, "kind": ..., "file": ..., "metadata": {...}}`` or
    ``{"table": name, "columns": [...], "rows": [...]}``. Non-finite numbers are the strings ``nan``, ``inf``, ``-inf``.
    An incomplete last line, left by a crash, is removed when the file is opened again.

    Raises:
        MetaschedError: here or in a later call: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = open(path, "a+b", buffering=0)
            self._file.seek(0)
            whole = self._file.read().rpartition(b"\n")
            self._file.truncate(len(whole[0]) + len(whole[1]))
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._failed(error) from error

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Writes one row."""
        self.write(metrics)

    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any]) -> None:
        """Writes the name of a file; the file itself is not copied."""
        self.write({"artifact": name, "kind": kind, "file": path.name, "metadata": metadata})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Writes the table as one line."""
        self.write({"table": name, "columns": columns, "rows": rows})

    def picture(self, name: str, path: Path) -> None:
        """Writes the name of a picture file."""
        self.write({"picture": name, "file": path.name})

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def write(self, value: Mapping[str, Any]) -> None:
        """Writes one object."""
        line = json_text(value).encode() + b"\n"
        try:
            while line:  # if the disk is almost full, only a part is written
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> MetaschedError:
        fix = "check that the folder exists, is writable and has free space"
        return MetaschedError(str(self._path), f"cannot be written ({error.strerror})", fix)


def cut_back(path: Path, size: int) -> None:
    """Removes the lines after the first ``size`` bytes; warns of an incomplete last line.

    Raises:
        MetaschedError: the file is shorter, no line ends at ``size``, a line is not JSON, or the file cannot be cut.
    """
    if not path.exists() and size == 0:
        return
    try:
        read_json_lines(path)
        kept = path.read_bytes()[:size]
        if len(kept) < size or kept[-1:] not in (b"", b"\n"):
            problem = f"has no end of a line after {size} bytes, where the checkpoint continues"
            raise MetaschedError(str(path), problem, "restore the file as the run left it, or start a new run")
        os.truncate(path, size)
    except OSError as error:
        fix = "restore it, or start a new run"
        raise MetaschedError(str(path), f"cannot be resumed ({error.strerror})", fix) from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that ``JsonLines`` wrote; an incomplete last line is left out, with a warning.

    Raises:
        MetaschedError: the file cannot be read, or another line is not a JSON object.
    """
    *lines, torn = read_regular(path, MAX_BYTES, "restore the file as the run left it").split(b"\n")
    if torn:
        warnings.warn(f"{path}: the last line is incomplete and was left out", MetaschedWarning, stacklevel=2)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MetaschedError(f"{path}: line {number}", "is not JSON", "remove the line") from error
        if not isinstance(row, dict):
            raise MetaschedError(f"{path}: line {number}", "is not a JSON object", "remove the line")
        rows.append(row)
    return rows
