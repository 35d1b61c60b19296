"""Atomic writes: after a crash, a file has the old or the new content, never a part."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from metasched.core.errors import MetaschedError


def write_atomic(path: str | Path, data: bytes) -> None:
    """Writes a file atomically: at any moment, readers see the old or the new content, never a part.

    Steps: temporary file in the same folder, flush, fsync, rename, fsync of the folder.

    Raises:
        MetaschedError: the file cannot be written (no such folder, no permission, disk full); the old one is unchanged.
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
        fix = "check that the folder exists, is writable and has free space"
        raise MetaschedError(str(path), f"cannot be written ({error.strerror})", fix) from error


def settled_size(path: str | Path) -> int:
    """Size of a file in bytes, after an fsync."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
