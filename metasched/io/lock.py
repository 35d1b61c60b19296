"""A file that one process alone holds; the system takes it back when that process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Held(Exception):
    """Another process holds the file; ``words`` are what it has written into it."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(words)
        self.words = words


class Lock:
    """Holds a file, made where it is missing, and says in it who holds it.

    Raises:
        Held: another process does.
        OSError: it cannot be made, or is a link.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = _locked(path)

    def words(self) -> list[str]:
        """What was written into the file last."""
        return _words(self._descriptor)

    def sign(self, text: str) -> None:
        """Writes the number of this process, and a text, in place of what is there."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()} {text}\n".encode(), 0)

    def release(self) -> None:
        """Gives the file back."""
        os.close(self._descriptor)


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
        os.close(descriptor)  # its holder has removed it in between


def _words(descriptor: int) -> list[str]:
    return os.pread(descriptor, 40, 0).decode("ascii", "replace").split()
