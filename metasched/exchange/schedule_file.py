"""Schedules to JSON and back: canonical text, strict reading.

A schedule has one text only: keys sorted, floats in the fewest digits that give the same float64 again, one curve a
line. So ``dumps(loads(text)) == text`` for every text that ``dumps`` wrote, and equal schedules have equal hashes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter, ValidationError

from metasched.core.errors import MetaschedError, printable
from metasched.exchange.format import FORMAT, VERSIONS, ScheduleFile
from metasched.io.reading import read_regular
from metasched.io.strict_json import MAX_BYTES, join, parse, show

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


_PROBLEMS = {  # pydantic's words for these speak of Python
    "missing": ("missing", "add it"),
    "unexpected_keyword_argument": ("unknown key", "remove it"),
    "dataclass_type": ("must be an object", "put it in braces"),
    "dict_type": ("must be an object", "put it in braces"),
    "tuple_type": ("must be an array", "put it in brackets"),
}
_ADAPTER: TypeAdapter[ScheduleFile] = TypeAdapter(cast(Any, ScheduleFile))


def dumps(file: ScheduleFile) -> str:
    """The canonical text of a schedule: ASCII, ending in a newline."""
    tree = _ADAPTER.dump_python(file, mode="json")
    if not file.provenance.spent:  # files from before that field keep their text, and so their hash
        del tree["provenance"]["spent"]
    for control in tree["controls"]:
        if control["scale"] == "linear":  # likewise
            del control["scale"]
    return _canonical(tree, "") + "\n"


def loads(text: str | bytes, path: str) -> ScheduleFile:
    """Read a schedule from its text.

    Args:
        text: JSON, at most 1 MiB; need not be canonical.
        path: what error messages call the text, as a rule its file name.

    Raises:
        MetaschedError: whatever is wrong with it, with the place: ``schedule.json: values.noise_scale[2][5]``.
    """
    try:
        tree = parse(text)
        _check_version(tree)
        return validated(tree)
    except MetaschedError as error:
        where = f"{path}: {error.path}" if error.path else path
        raise MetaschedError(where, error.problem, error.fix) from None


def write_schedule(path: str | os.PathLike[str], file: ScheduleFile) -> None:
    """Write a schedule file, atomically.

    Raises:
        MetaschedError: it would be larger than ``read_schedule`` takes.
    """
    from metasched.io.atomic import write_atomic

    data = dumps(file).encode("ascii")
    if len(data) > MAX_BYTES:
        raise MetaschedError(str(path), f"would be larger than {MAX_BYTES} bytes", "use fewer knots")
    write_atomic(Path(path), data)


def read_schedule(path: str | os.PathLike[str]) -> ScheduleFile:
    """Read a schedule file; see ``loads``.

    Raises:
        MetaschedError: it cannot be read, or is not a schedule.
    """
    data = read_regular(path, MAX_BYTES, "give the path of a schedule file")
    return loads(data, printable(os.fspath(path)))


def _check_version(tree: Any) -> None:
    """Before all else, because another version may have other fields."""
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise MetaschedError("format", "this is not a schedule file", f'its first level needs "format": "{FORMAT}"')
    version = tree.get("version")
    if type(version) is not int or version not in VERSIONS:  # True == 1
        known = ", ".join(map(str, VERSIONS))
        raise MetaschedError(
            "version", f"unknown version {show(version)}; known: {known}", "update metasched or export it again"
        )


def validated(tree: Any) -> ScheduleFile:
    """The record that a tree of plain values describes.

    Raises:
        MetaschedError: the first thing that is wrong with it, with its place.
    """
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise _first_problem(error, tree) from None


def _first_problem(error: ValidationError, tree: Any) -> MetaschedError:
    errors = error.errors(include_url=False)
    kind, path = errors[0]["type"], _path(errors[0], tree)
    own = errors[0].get("ctx", {}).get("error")
    if isinstance(own, MetaschedError):  # from a check of ours, whose path starts at its record
        return MetaschedError(f"{path}.{own.path}" if path else own.path, own.problem, own.fix)
    if kind in _PROBLEMS:
        return MetaschedError(path, *_PROBLEMS[kind])
    # A union reports once for each of its members, all with the same path.
    needed = " or ".join(e["msg"].partition(" should ")[2] for e in errors[:5] if _path(e, tree) == path)
    needed = needed.replace(" or be ", " or ").replace(" after validation", "")
    return MetaschedError(path, f"must {needed}, got {show(errors[0]['input'])}", "correct it")


def _path(error: ErrorDetails, tree: Any) -> str:
    """The path in the text of an error's location, which goes on inside of values and keys."""
    path = ""
    for part in error["loc"]:
        members: dict[Any, Any] = dict(enumerate(tree)) if isinstance(tree, list) else tree
        if not isinstance(members, dict) or (part not in members and error["type"] != "missing"):
            break
        path, tree = join(path, part), members.get(part)
    return path


def _canonical(value: Any, indent: str) -> str:
    """JSON text with sorted keys; a list of plain values stays on one line, so that a curve is a line."""
    deeper = indent + " "
    if isinstance(value, dict) and value:
        members = [f"{json.dumps(key)}: {_canonical(value[key], deeper)}" for key in sorted(value)]
        return "{\n" + ",\n".join(deeper + member for member in members) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(deeper + _canonical(item, deeper) for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
