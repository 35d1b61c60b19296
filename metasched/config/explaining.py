"""What pydantic finds wrong with an experiment, in words of ours: where, what, and what was probably meant."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence

from pydantic_core import ErrorDetails

from metasched.config.fields import fields, names_in
from metasched.config.retired import RETIRED
from metasched.core.errors import MetaschedError
from metasched.core.field_types import REFUSED


def one_of_each_field(found: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Of a field that may be of several types, such as a number or a word, the first of the errors of all these types.

    Their locations end in the name of the type, which no field has.
    """
    plain = {f.path for f in fields() if "[" not in f.type and "{" not in f.type}
    own: dict[tuple[int | str, ...], ErrorDetails] = {}
    for error in found:
        location = error["loc"]
        if ".".join(map(str, location[:-1])) in plain:
            location = location[:-1]
        own.setdefault(location, ErrorDetails(**{**error, "loc": location}))
    return list(own.values())


def explain(error: ErrorDetails, place: Callable[[str], str]) -> MetaschedError:
    """What pydantic found, in our words."""
    kind, location, value = error["type"], error["loc"], error["input"]
    section = tuple(str(part) for part in location[:-1])
    name = str(location[-1])
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)[1:]
    if kind == "unexpected_keyword_argument":
        return MetaschedError(place(dotted), "unknown field", _suggest(name, section))
    if kind == "dataclass_type":
        known = ", ".join(names_in((*section, name)))
        return MetaschedError(place(dotted), f"must be a section, got {_show(value)}", f"it has the fields {known}")
    if (retired := f"{dotted}: {value}") in RETIRED:
        return MetaschedError(place(dotted), f"{value!r} is no longer there", RETIRED[retired])
    if kind == REFUSED:
        return MetaschedError(place(dotted), error["ctx"]["problem"], error["ctx"]["fix"])  # pyright: ignore
    problem = _NOT_OURS.sub("", error["msg"])
    for theirs, ours in _WORDS.items():
        problem = problem.replace(theirs, ours)
    path = dotted.split("[")[0]
    info = next(f for f in fields() if f"{path}.".startswith(f"{f.path}."))
    about = f" [{info.description}]" if info.description else ""
    near = difflib.get_close_matches(str(value), info.type.split("|"), n=1)
    fix = f"did you mean {near[0]!r}?" if near else f"give {info.type}, such as the default {_show(info.default)}"
    return MetaschedError(place(dotted), f"{problem}, got {_show(value)}", fix + about)


_NOT_OURS = re.compile(r", (unable to|got a|after).*")
_WORDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "Input should": "must",
    "String should": "must",
    "Tuple should": "must",
    "Field required": "an item is missing",
    "a valid tuple": "a list",
    "a valid string": "text",
    "a valid dictionary": "a mapping",
}


def _suggest(name: str, section: tuple[str, ...]) -> str:
    """The fields that an unknown one may stand for: by spelling in its section, or of the same name elsewhere."""
    known = names_in(section)
    near = difflib.get_close_matches(name, known, n=1)
    same = [f.path for f in fields() if f.path.split(".")[-1] == name]
    guess = near or same
    return (f"did you mean {' or '.join(guess)}? " if guess else "") + f"Known: {', '.join(known)}"


def _show(value: object) -> str:
    """A value as YAML would have it on one line, cut to 60 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
