"""Reads untrusted files: regular files of limited size only."""

from __future__ import annotations

import os
import stat

from metasched.core.errors import MetaschedError, printable

_KINDS = {
    stat.S_IFDIR: "Is a directory",
    stat.S_IFIFO: "Is a pipe, not a file",
    stat.S_IFSOCK: "Is a socket, not a file",
    stat.S_IFCHR: "Is a device, not a file",
    stat.S_IFBLK: "Is a device, not a file",
}


def read_regular(path: str | os.PathLike[str], limit: int, fix: str) -> bytes:
    """The content of a regular file.

    Pipes and devices are not opened, because reading them might never end. Links are followed.

    Args:
        path: path of the file.
        limit: largest size in bytes.
        fix: last part of error messages: how to fix a file that cannot be read.

    Raises:
        MetaschedError: the file does not exist, cannot be read, is not a regular file, or is too large.
    """
    where = printable(os.fspath(path))
    too_large = MetaschedError(where, f"larger than {limit} bytes", fix)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "Is not a file")
            raise MetaschedError(where, f"cannot be read: {kind}", fix)
        if found.st_size > limit:
            raise too_large
        # O_NONBLOCK: if a pipe has replaced the file in the meantime, opening it does not wait for a writer
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            data = stream.read(limit + 1) or b""
    except MetaschedError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte, or text that is not a valid path
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise MetaschedError(where, f"cannot be read: {why}", fix) from None
    if len(data) > limit:
        raise too_large
    return data
