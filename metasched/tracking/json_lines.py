"""The JSON lines of the run folder: what every run leaves, with or without a tracking service."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metasched.errors import MetaschedError
from metasched.files import json_text
from metasched.tracking.tracker import Scalar


class JsonLines:
    """An append-only file of one JSON object a line, written out at each call.

    A line is a row of metrics, ``{"artifact": name, "kind": ..., "file": ..., "metadata": {...}}`` or
    ``{"table": name, "columns": [...], "rows": [...]}``. Non-finite numbers are the strings ``nan``, ``inf``, ``-inf``.
    A last line without its end, left by a crash, is cut off when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+b")
        self._file.seek(0)
        whole = self._file.read().rpartition(b"\n")
        self._file.truncate(len(whole[0]) + len(whole[1]))
        self._file.seek(0, os.SEEK_END)

    def log(self, metrics: Mapping[str, Scalar]) -> None:
        """Writes one row."""
        self._write(metrics)

    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any]) -> None:
        """Writes which file it is; the file itself stays where it lies."""
        self._write({"artifact": name, "kind": kind, "file": path.name, "metadata": metadata})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> None:
        """Writes the table as one line."""
        self._write({"table": name, "columns": columns, "rows": rows})

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(json_text(value).encode() + b"\n")
        self._file.flush()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that ``JsonLines`` wrote; a torn last line is left out with a warning.

    Raises:
        MetaschedError: any other line is not JSON.
    """
    *lines, torn = path.read_bytes().split(b"\n")
    if torn:
        warnings.warn(f"{path}: the last line is torn and was left out", stacklevel=2)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise MetaschedError(f"{path}: line {number}", "is not JSON", "take the line out") from error
    return rows
