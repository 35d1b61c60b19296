"""The folder of one run: a path for each file that it leaves, and the lock of the process at work in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from metasched.core.errors import MetaschedError
from metasched.io.atomic import write_atomic
from metasched.io.lock import Held, Lock


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; a path for each file that a run leaves. ``DONE`` is there once the run has finished.

    While a process is at work in it, it holds a lock on the file ``PID``, which the system gives back when it ends,
    however it ends. So nothing stale is ever left.

    Attributes:
        path: where it lies.
        lock: on ``PID``; None for a folder that is only looked at.
    """

    path: Path
    lock: Lock | None = field(default=None, repr=False, compare=False)

    @classmethod
    def create(cls, parent: str | Path, name: str, command: str = "train") -> RunFolder:
        """A new folder ``<parent>/<name>-<NNN>``, with the number after the largest that is there.

        Raises:
            MetaschedError: it cannot be made.
        """
        parent = Path(parent)
        _make(parent)
        taken = [p.name.removeprefix(f"{name}-") for p in parent.glob(f"{name}-*")]
        number = max((int(t) for t in taken if t.isdecimal()), default=0)
        while True:  # another process may take the number first
            number += 1
            path = parent / f"{name}-{number:03d}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                raise _no_folder(path, error) from error
            return cls.claim(path, command)

    @classmethod
    def claim(cls, path: str | Path, command: str = "train") -> RunFolder:
        """A given folder, made where it is missing; from now on it holds this run.

        Args:
            path: the folder.
            command: what it is a run of.

        Raises:
            MetaschedError: it already holds a run, finished or not, or something else, or cannot be made.
        """
        path = Path(path)
        _make(path)
        _refuse_foreign(path)
        lock = _lock(path)
        folder = cls(path, lock)
        try:
            for mark in folder.marks:
                if mark.exists():
                    raise _holds_a_run(path, f"it has a {mark.name}")
            lock.sign(command)
        except (MetaschedError, OSError) as error:
            lock.release()
            raise error if isinstance(error, MetaschedError) else _no_folder(path, error) from error
        return folder

    @classmethod
    def resume(cls, path: str | Path, command: str = "train") -> RunFolder:
        """A folder whose run goes on.

        Raises:
            MetaschedError: it holds no run of this command, one that has finished, or one that is going on.
        """
        path = Path(path)
        if not os.path.isfile(cls(path).config):  # Path.is_file raises on a name too long
            raise MetaschedError(str(path), f"holds no run (no {cls(path).config.name})", "give the folder of a run")
        lock = _lock(path)
        folder = cls(path, lock)
        try:
            made_by = lock.words()[1:2]
            if made_by not in ([], [command]):
                fix = f"only runs of `metasched {command}` can be resumed"
                raise MetaschedError(str(path), f"holds a run of `metasched {made_by[0][:20]}`", fix)
            if folder.done.exists():
                raise MetaschedError(str(path), "holds a run that has finished", "look into it")
            lock.sign(command)
            for torn in path.glob(".*.tmp"):  # what write_atomic was at when the run was killed
                torn.unlink()
        except (MetaschedError, OSError) as error:
            lock.release()
            raise error if isinstance(error, MetaschedError) else _no_folder(path, error) from error
        return folder

    def release(self) -> None:
        """Lets another process work in it."""
        if self.lock is not None:
            self.lock.release()

    @property
    def marks(self) -> tuple[Path, ...]:
        """Files of which each shows that a run has been here."""
        return self.done, self.config, self.checkpoint, self.metrics

    @property
    def config(self) -> Path:
        """Every field of the experiment, as YAML."""
        return self.path / "config.resolved.yaml"

    @property
    def environment(self) -> Path:
        """What the run ran on, as JSON."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """What was logged, as JSON lines."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Where the outer loop stands."""
        return self.path / "checkpoint.pt"

    @property
    def cells(self) -> Path:
        """Scores of the inner runs that choose the start and compare, as JSON lines."""
        return self.path / "cells.jsonl"

    @property
    def resumes(self) -> Path:
        """What it was resumed with, as JSON lines."""
        return self.path / "resumes.jsonl"

    @property
    def schedule(self) -> Path:
        """The learned schedule."""
        return self.path / "schedule.json"

    @property
    def schedules(self) -> Path:
        """Copies of the schedule files that are compared, each in a folder with its number."""
        return self.path / "schedules"

    @property
    def comparison(self) -> Path:
        """Scores of all schedules on the same seeds, as JSON."""
        return self.path / "comparison.json"

    @property
    def report(self) -> Path:
        """The comparison as a page that needs nothing else."""
        return self.path / "report.html"

    @property
    def plots(self) -> Path:
        """Folder of the pictures."""
        return self.path / "plots"

    @property
    def done(self) -> Path:
        """There once the run has finished."""
        return self.path / "DONE"

    def discard(self, made: Sequence[Path]) -> None:
        """Removes a run that has logged nothing yet: its files, and the folders (innermost first) made for it."""
        if self.metrics.exists():
            return
        for file in (self.config, self.environment, self.path / "PID"):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: something else lies in it
            for folder in made:
                folder.rmdir()

    def finish(self) -> None:
        """Marks the run as finished."""
        write_atomic(self.done, b"")


def _lock(folder: Path) -> Lock:
    try:
        return Lock(folder / "PID")
    except Held as held:
        holder = held.words[0] if held.words else "?"
        raise MetaschedError(str(folder), f"is in use by process {holder}", "wait until it ends, or end it") from None
    except OSError as error:
        raise _no_folder(folder, error) from error


def _refuse_foreign(path: Path) -> None:
    """Refuses a folder in which something lies that no run has left: a run writes, and may overwrite, many names."""
    folder = RunFolder(path)
    try:
        found = sorted(p.name for p in path.iterdir())
    except OSError as error:
        raise _no_folder(path, error) from error
    if found and not {"PID", *(p.name for p in folder.marks)} & {*found}:
        rest = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise MetaschedError(str(path), f"is not empty (it has {found[0]!r}{rest})", "give a new or an empty folder")


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(path, error) from error


def _no_folder(path: Path, error: OSError) -> MetaschedError:
    return MetaschedError(str(path), f"cannot be made a run folder ({error.strerror})", "give another with --folder")


def _holds_a_run(path: Path, why: str) -> MetaschedError:
    fix = "give another folder, or none for a new one; --resume goes on with a run of `metasched train`"
    return MetaschedError(str(path), f"already holds a run ({why})", fix)
