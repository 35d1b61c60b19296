"""Work and answers as bytes: what travels between processes or machines is a copy, errors included."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any


def packed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    """The work ``function(*arguments)`` as bytes; the function is found again by its name."""
    return pickle.dumps((function, arguments))


def answered(work: bytes) -> bytes:
    """Does packed work; the answer is its value, or the error that it raised."""
    function, arguments = pickle.loads(work)
    try:
        return pickle.dumps((function(*arguments), None))
    except Exception as error:  # all of them are to be raised by the one who asked
        return pickle.dumps((None, error))


def result(answer: bytes) -> Any:
    """The value of an answer; raises its error.

    >>> result(answered(packed(max, (1, 2))))
    2
    """
    value, error = pickle.loads(answer)
    if error is not None:
        raise error
    return value
