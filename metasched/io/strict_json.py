"""Strict parsing of untrusted JSON: plain values, or one error with the place of the problem.

Python's parser accepts more than JSON allows: NaN, duplicate keys, and nesting until the stack overflows.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from metasched.core.errors import MetaschedError

MAX_BYTES = 2**20
MAX_DEPTH = 8
MAX_MEMBERS = 1024
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_INT64_DIGITS = 20  # including the sign


class _Pairs(list):
    """The members of a JSON object in order, including duplicate keys."""


def parse(text: str | bytes, depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text: dict, list, str, int, float, bool or None.

    Args:
        text: JSON in UTF-8 without byte-order mark, at most 1 MiB.
        depth: largest number of levels.

    Raises:
        MetaschedError: the text violates RFC 8259, or has more levels, more than 1024 members in an object,
            duplicate keys, lone surrogates, integers beyond 64 bits, or numbers that are infinite in float64. The path
            of the error is that of the value in the text.

    >>> parse('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MAX_BYTES:
        raise MetaschedError("", f"larger than {MAX_BYTES} bytes", "use fewer knots or layers")
    if not data.strip():
        raise MetaschedError("", "empty", "give a JSON object")
    if data.startswith(b"\xef\xbb\xbf"):
        raise MetaschedError("", "starts with a byte-order mark", "save it as UTF-8 without one")
    try:
        raw = json.loads(
            data.decode("utf-8"), object_pairs_hook=_Pairs, parse_int=_parse_int, parse_constant=_parse_constant
        )
    except UnicodeDecodeError as error:
        raise MetaschedError("", f"not UTF-8 at byte {error.start}", "save it as UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise MetaschedError(where, f"not JSON: {error.msg}", "correct it there") from None
    except RecursionError:
        raise _too_deep("", depth) from None
    return _plain(raw, "", depth, depth)


def join(path: str, key: str | int) -> str:
    """The path of a member: ``values.weight_noise[2]``; keys that are not plain names are quoted.

    >>> join(join("values", "weight_noise"), 2), join("values", "a b")
    ('values.weight_noise[2]', "values['a b']")
    """
    if isinstance(key, str) and _PLAIN_KEY.fullmatch(key):
        return f"{path}.{key}" if path else key
    return f"{path}[{show(key)}]"


def show(value: object) -> str:
    """A value from a file for an error message: ASCII, on one line, at most 60 characters.

    >>> show("a" * 100)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..."
    """
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _INT64_DIGITS else math.inf  # int() raises for thousands of digits


def _parse_constant(name: str) -> float:
    return math.nan  # _plain raises for NaN and the infinities, with their path


def _plain(raw: Any, path: str, left: int, depth: int) -> Any:
    if isinstance(raw, list) and left == 0:
        raise _too_deep(path, depth)
    if isinstance(raw, _Pairs):
        if len(raw) > MAX_MEMBERS:
            raise MetaschedError(path, f"has {len(raw)} members, more than {MAX_MEMBERS}", "leave some out")
        members: dict[str, Any] = {}
        for key, value in raw:
            where = join(path, key)
            if key in members:
                raise MetaschedError(where, "this key occurs twice in its object", "keep one of the two")
            members[_plain(key, where, left, depth)] = _plain(value, where, left - 1, depth)
        return members
    if isinstance(raw, list):
        return [_plain(value, f"{path}[{i}]", left - 1, depth) for i, value in enumerate(raw)]
    if isinstance(raw, int | float) and not (math.isfinite(raw) and (isinstance(raw, float) or abs(raw) < 2**63)):
        raise MetaschedError(path, "must be a finite number, and an integer must fit in 64 bits", "correct it")
    if isinstance(raw, str) and not raw.isascii() and any("\ud800" <= c <= "\udfff" for c in raw):
        raise MetaschedError(path, "must be Unicode text, but has half of a surrogate pair", "correct it")
    return raw


def _too_deep(path: str, depth: int) -> MetaschedError:
    return MetaschedError(path, f"nested more than {depth} levels deep", "use fewer levels; a schedule needs 4")
