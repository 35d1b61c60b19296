"""Reading a file that may come from a stranger: a regular file, of a limited size, or one clear error."""

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
    """The bytes of a file.

    Nothing else than a regular file is opened, so that neither a pipe, which might never end, nor a device, which
    might never stop, holds the program up. A link is followed to what it names.

    Args:
        path: of the file.
        limit: the most bytes that it may hold.
        fix: what to do about a file that cannot be read.

    Raises:
        MetaschedError: there is no such file, it cannot be read, is no regular file, or is larger.
    """
    where = printable(os.fspath(path))
    too_large = MetaschedError(where, f"larger than {limit} bytes", fix)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "Is no file")
            raise MetaschedError(where, f"cannot be read: {kind}", fix)
        if found.st_size > limit:
            raise too_large
        # Should a pipe have taken its place by now, opening does not wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            data = stream.read(limit + 1) or b""
    except MetaschedError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte, or text that no path can be
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise MetaschedError(where, f"cannot be read: {why}", fix) from None
    if len(data) > limit:
        raise too_large
    return data
