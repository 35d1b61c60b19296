"""The folder of a study: what it is of, and each evaluation, written once and for all.

    study.json              what the study is of; the folder of another study is refused
    evaluations.jsonl       one line for each run of the training function, in the order in which they ended
    claims/                 one lock for each run that some process is doing now
    found.jsonl, *.json     the schedules that were found, and how good they are
    comparison.json         the last comparison

Several processes may share a folder. A line is appended under a lock and followed by an fsync, so that whatever is
killed, all lines are whole but perhaps the last one, which is then taken away. A claim is a lock of the system, which
ends with its process.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metasched.core.errors import MetaschedError
from metasched.io.atomic import write_atomic
from metasched.io.json_lines import MAX_BYTES
from metasched.io.json_text import json_text
from metasched.io.lock import Held, Lock
from metasched.io.reading import read_regular
from metasched.io.strict_json import parse

FORMAT = "metasched.study"
_FIX = "restore the file, or give another folder"


class Storage:
    """Evaluations of a study by their key, in memory and in a folder.

    Args:
        path: of the folder; it is made if it is not there.
        identity: {what: its hash or value} of the study.

    Raises:
        MetaschedError: the folder is that of another study, or of something else, or cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._read = 0
        self._rows: dict[str, dict[str, Any]] = {}
        self._open(identity)
        self.refresh()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> dict[str, Any] | None:
        """The evaluation of a key, if it is done."""
        return self._rows.get(key)

    def refresh(self) -> None:
        """Reads what other processes have written since."""
        self._read, rows = _rows_since(self.path / "evaluations.jsonl", self._read)
        self._rows |= {row["key"]: row for row in rows}

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes an evaluation, which has a ``key``."""
        _append(self.path / "evaluations.jsonl", row)
        self.refresh()

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Within: this process is the one to do an evaluation; False if another one is doing it."""
        path = self.path / "claims" / key
        try:
            lock = Lock(path)
        except Held:
            yield False
            return
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            lock.release()

    def found(self) -> list[dict[str, Any]]:
        """The schedules that were found so far, in the order of their finding."""
        return _rows_since(self.path / "found.jsonl", 0)[1]

    def add_found(self, row: Mapping[str, Any]) -> None:
        """Adds a schedule that was found, unless the same line is there."""
        if dict(row) not in self.found():
            _append(self.path / "found.jsonl", row)

    def _open(self, identity: Mapping[str, Any]) -> None:
        file, own = self.path / "study.json", {"format": FORMAT, "version": 1, **identity}
        if not file.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise MetaschedError(str(self.path), "is there and is no study", "give another folder")
            try:
                (self.path / "claims").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _unwritable(self.path, error) from error
            write_atomic(file, json.dumps(own, indent=1, sort_keys=True).encode() + b"\n")
            return
        there = parse(read_regular(file, MAX_BYTES, _FIX))
        if not isinstance(there, dict) or there.get("format") != FORMAT:
            raise MetaschedError(str(file), "is no study", "give another folder")
        if differ := [name for name in {**own, **there} if own.get(name) != there.get(name)]:
            problem = f"holds a study with another {', '.join(sorted(differ))}"
            raise MetaschedError(str(self.path), problem, "give another folder, or what that study was of")
        (self.path / "claims").mkdir(exist_ok=True)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """One whole line at the end of a file, on the disk when this returns."""
    line = json_text(row).encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            end = os.fstat(descriptor).st_size
            if end and os.pread(descriptor, 1, end - 1) != b"\n":  # a process was killed while it wrote
                end = os.pread(descriptor, end, 0).rfind(b"\n") + 1
                os.ftruncate(descriptor, end)
            while line:
                wrote = os.pwrite(descriptor, line, end)
                line, end = line[wrote:], end + wrote
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unwritable(path, error) from error


def _rows_since(path: Path, start: int) -> tuple[int, list[dict[str, Any]]]:
    """The end of the last whole line of a file, and the rows of the lines that begin at ``start`` or after it."""
    if not path.exists():
        return start, []
    with open(path, "rb") as file:
        file.seek(start)
        whole = file.read(MAX_BYTES).rpartition(b"\n")[0]
    if not whole:
        return start, []
    rows = []
    for line in whole.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MetaschedError(str(path), f"has a line that is not JSON: {line[:40]!r}", _FIX) from error
        if not isinstance(row, dict):
            raise MetaschedError(str(path), f"has a line that is no object: {line[:40]!r}", _FIX)
        rows.append(row)
    return start + len(whole) + 1, rows


def _unwritable(path: Path, error: OSError) -> MetaschedError:
    fix = "check that the folder is writable and has free space"
    return MetaschedError(str(path), f"cannot be written ({error.strerror})", fix)
