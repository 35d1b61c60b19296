"""A lock file that at most one process holds; the system releases it when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_DESCRIPTORS: set[int] = set()  # of the locks that this process holds


class Held(Exception):
    """Another process holds the lock; ``words`` is what it has written into the file."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(words)
        self.words = words


class Lock:
    """Creates and locks a file, whose content names the holder.

    Raises:
        Held: another process holds the lock.
        OSError: the file cannot be created or is a link.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = _locked(path)
        _DESCRIPTORS.add(self._descriptor)

    def words(self) -> list[str]:
        """The content of the file, split into words."""
        return _words(self._descriptor)

    def sign(self, text: str) -> None:
        """Replaces the content of the file by the id of this process and a text."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()} {text}\n".encode(), 0)

    def release(self) -> None:
        """Releases the lock."""
        _DESCRIPTORS.discard(self._descriptor)
        os.close(self._descriptor)


def _let_go() -> None:
    """In a fork: it would hold the locks of its parent for a moment longer, if that is killed."""
    for descriptor in _DESCRIPTORS:
        os.close(descriptor)
    _DESCRIPTORS.clear()


os.register_at_fork(after_in_child=_let_go)


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            words = _words(descriptor)
            os.close(descriptor)
            raise Held(words) from None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the previous holder has removed the file in the meantime


def _words(descriptor: int) -> list[str]:
    return os.pread(descriptor, 40, 0).decode("ascii", "replace").split()
