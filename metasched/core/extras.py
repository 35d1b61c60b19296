"""Packages that only an extra of the distribution installs: the one-line error where they are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from metasched.core.errors import MetaschedError


def missing(package: str, extra: str) -> MetaschedError:
    """The error for a package that is not installed.

    >>> str(missing("torchao", "torchao"))
    "torchao: is not installed; pip install 'metasched[torchao]'"
    """
    return MetaschedError(package, "is not installed", f"pip install 'metasched[{extra}]'")


@contextmanager
def from_extra(extra: str) -> Iterator[None]:
    """Within: imports of packages that the extra installs.

    Raises:
        MetaschedError: a module is not there; the message names its package and the extra.

    >>> with from_extra("train"):
    ...     import nothing_like_it.deeper
    Traceback (most recent call last):
    metasched.core.errors.MetaschedError: nothing_like_it: is not installed; pip install 'metasched[train]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing((error.name or str(error)).partition(".")[0], extra) from None


def require(extra: str, *packages: str) -> None:
    """Raises the error of the first package that is not installed, before work that needs it at its end.

    Raises:
        MetaschedError: a package is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise missing(package, extra)
