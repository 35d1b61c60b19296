"""The folder of one run: the path of each of its files, and the lock of the process that works in it."""

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
    """The folder of one run, with the path of each of its files. The file ``DONE`` exists once the run has finished.

    A process that works in the folder holds a lock on the file ``PID``. The system releases the lock when the process
    ends, however it ends, so there are no stale locks.

    Attributes:
        path: path of the folder.
        lock: lock on ``PID``; None if the folder is only read.
    """

    path: Path
    lock: Lock | None = field(default=None, repr=False, compare=False)

    @classmethod
    def create(cls, parent: str | Path, name: str, command: str = "train") -> RunFolder:
        """Creates and claims ``<parent>/<name>-<NNN>``, where NNN is one more than the largest existing number.

        Raises:
            MetaschedError: the folder cannot be created.
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
        """Claims a folder for a new run, and creates it if it does not exist.

        Args:
            path: path of the folder.
            command: the command of the run.

        Raises:
            MetaschedError: the folder already contains a run, finished or not, or something else, or cannot be created.
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
        """Claims the folder of a stopped run, to resume it.

        Raises:
            MetaschedError: the folder contains no run of this command, or the run has finished or is in progress.
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
                raise MetaschedError(str(path), "holds a run that has finished", "read its results, or start a new run")
            lock.sign(command)
            for torn in path.glob(".*.tmp"):  # left by write_atomic when the run was killed
                torn.unlink()
        except (MetaschedError, OSError) as error:
            lock.release()
            raise error if isinstance(error, MetaschedError) else _no_folder(path, error) from error
        return folder

    def release(self) -> None:
        """Releases the lock, so that another process can work in the folder."""
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
        """The environment of the run, as JSON."""
        return self.path / "environment.json"

    @property
    def task(self) -> Path:
        """The fingerprint of the task, as JSON."""
        return self.path / "task.json"

    @property
    def metrics(self) -> Path:
        """The logged metrics, as JSON lines."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the outer loop."""
        return self.path / "checkpoint.pt"

    @property
    def cells(self) -> Path:
        """Scores of the inner runs for choosing the start, for confirming and for comparing, as JSON lines."""
        return self.path / "cells.jsonl"

    @property
    def scores(self) -> Path:
        """Scores of allocations of bits, as JSON lines."""
        return self.path / "scores.jsonl"

    @property
    def resumes(self) -> Path:
        """One entry per resume, as JSON lines."""
        return self.path / "resumes.jsonl"

    @property
    def schedule(self) -> Path:
        """The schedule that the run exports."""
        return self.path / "schedule.json"

    @property
    def learned(self) -> Path:
        """What was learned, where it gave no gain over the schedule that learning started at."""
        return self.path / "schedule_learned.json"

    @property
    def schedules(self) -> Path:
        """Folder with copies of the compared schedule files, each in a numbered folder."""
        return self.path / "schedules"

    @property
    def comparison(self) -> Path:
        """The comparison: scores of all arms on the same seeds, as JSON."""
        return self.path / "comparison.json"

    @property
    def over_tasks(self) -> Path:
        """The comparison over several tasks: scores of all arms on each, as JSON."""
        return self.path / "over_tasks.json"

    @property
    def report(self) -> Path:
        """The comparison as one self-contained HTML page."""
        return self.path / "report.html"

    @property
    def plots(self) -> Path:
        """Folder of the plots."""
        return self.path / "plots"

    @property
    def done(self) -> Path:
        """A file that exists once the run has finished."""
        return self.path / "DONE"

    def discard(self, made: Sequence[Path]) -> None:
        """Removes the files of a run that has found nothing yet, and the folders created for it, innermost first."""
        if self.metrics.exists() or any(path.exists() and path.stat().st_size for path in (self.cells, self.scores)):
            return
        for file in (self.config, self.environment, self.task, self.cells, self.scores, self.path / "PID"):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: it contains other files
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
        raise MetaschedError(str(folder), f"is in use by process {holder}", "wait until it ends, or stop it") from None
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
    return MetaschedError(
        str(path), f"cannot be made a run folder ({error.strerror})", "give another folder with --folder"
    )


def _holds_a_run(path: Path, why: str) -> MetaschedError:
    fix = "give another folder, or none for a new one; use --resume to continue a run of `metasched train`"
    return MetaschedError(str(path), f"already holds a run ({why})", fix)
