"""Files that survive a crash, the folder of a run, and what the run ran on."""

from __future__ import annotations

import json
import math
import os
import platform
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from metasched.errors import MetaschedError
from metasched.lock import Held, Lock

INNER_THREADS = 1  # of each process while it does inner runs: the last bits of a sum depend on their number


def write_atomic(path: str | Path, data: bytes) -> None:
    """Writes a file so that readers, and a crash at any moment, see the old content or the new one, never a part.

    Temporary file in the same folder, flush, fsync, rename, fsync of the folder.

    Raises:
        MetaschedError: the file cannot be written (no such folder, permission, disk full); the old one is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _fsync_folder(path.parent)
    except OSError as error:
        fix = "see that the folder is there and has room"
        raise MetaschedError(str(path), f"cannot be written ({error.strerror})", fix) from error


def settled_size(path: str | Path) -> int:
    """Bytes of a file, all of which are on the disk now."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON, in which a number that is not finite is the string ``nan``, ``inf`` or ``-inf``.

    >>> json_text({"loss": float("nan"), "scores": (1, 0.5)})
    '{"loss": "nan", "scores": [1, 0.5]}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


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
            MetaschedError: it already holds a run, finished or not, or cannot be made.
        """
        path = Path(path)
        _make(path)
        lock = _lock(path)
        folder = cls(path, lock)
        try:
            for mark in (folder.done, folder.config, folder.checkpoint, folder.metrics):
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


def version(package: str = "metasched") -> str | None:
    """The installed version of a package; None where it is not installed (such as a source tree on the path)."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name, as Linux knows it; elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment() -> dict[str, Any]:
    """What decides the bits of a run besides its configuration: versions, processor, threads, device, code.

    ``threads`` are those of this process now, ``inner_threads`` those of each process while it does inner runs: they
    decide the bits of a schedule and of its scores. No host, user or path is in it.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("metasched", "torch", "numpy", "higher")},
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "onednn": torch.backends.mkldnn.is_available(),
        "threads": torch.get_num_threads(),
        "inner_threads": INNER_THREADS,
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from, and whether tracked files differ from it."""
    here = Path(__file__)

    def ask(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", here.name) is None:  # installed, or without git
        return None
    commit, changes = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}
