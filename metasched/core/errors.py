"""Users' mistakes, and what may be one: one printable line that says where, what, and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from traceback import format_exception_only


class MetaschedError(ValueError):
    """A mistake in the user's input.

    Args:
        path: its place, as the user would write it (``meta.steps``, ``schedule.json: layers[2].kind``).
        problem: what is wrong, and why.
        fix: how to fix it.

    >>> str(MetaschedError("meta.steps", "must be at least 1, got 0", "set it to 50"))
    'meta.steps: must be at least 1, got 0; set it to 50'
    """

    exit_code = 2  # of the command line

    def __init__(self, path: str, problem: str, fix: str = "") -> None:
        self.path = path
        self.problem = problem
        self.fix = fix
        text = f"{path}: {problem}" if path else problem
        super().__init__(printable(" ".join((f"{text}; {fix}" if fix else text).split())))

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the lines of the user's own code that led here, and the message."""
        from metasched.core.shown import own_lines

        lines, cause = own_lines(self.__traceback__), self.__cause__
        if cause is not None and (below := own_lines(cause.__traceback__)):  # such as a training function that failed
            lines += [*below, *format_exception_only(cause)]
        return [line.rstrip("\n") for line in (*lines, f"{type(self).__name__}: {self}")]

    def __reduce__(self) -> tuple[type[MetaschedError], tuple[str, str, str]]:
        return type(self), (self.path, self.problem, self.fix)  # for process pools


class MetaschedWarning(UserWarning):
    """What may not be as the user thinks, in one line. ``warnings.filterwarnings`` can leave it out by this class."""


def printable(text: str) -> str:
    r"""The text with non-printable characters escaped, so that it cannot control a terminal.

    >>> print(printable("a\x1b[31m\n"))
    a\x1b[31m\n
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_MOST_NAMES = 40  # that a message lists


def unknown_name(path: str, name: str, known: Iterable[str]) -> MetaschedError:
    """The error for an unknown name; suggests the most similar known one, and lists all if they are few.

    >>> str(unknown_name("method.name", "anna", ["ana", "inq"]))
    "method.name: unknown name 'anna'; did you mean 'ana'? Known: ana, inq"
    """
    names = sorted(known)
    listed = f"Known: {', '.join(names)}" if len(names) <= _MOST_NAMES else f"{len(names)} names are known"
    return MetaschedError(path, f"unknown name {name!r}", f"{did_you_mean(name, names)}{listed}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question for the most similar known name, with a space after it; empty if none is similar.

    >>> did_you_mean("anna", ["ana", "inq"]), did_you_mean("x", ["ana"])
    ("did you mean 'ana'? ", '')
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
