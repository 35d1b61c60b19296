"""Schedule files: canonical JSON text and strict reading.

Each schedule has exactly one canonical text: keys are sorted, floats have the fewest digits that restore the same
float64, and each curve is one line. So ``dumps(loads(text)) == text`` for every text that ``dumps`` has written, and
equal schedules have equal hashes. Where an earlier version wrote a control under another name, reading gives it the
names of this one (former.py).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter, ValidationError

from metasched.core.errors import MetaschedError, printable
from metasched.exchange.format import EXTRAS, FORMAT, VERSIONS, ScheduleFile
from metasched.exchange.former import renamed
from metasched.exchange.shipped import file_of, unknown_schedule
from metasched.io.reading import read_regular
from metasched.io.strict_json import MAX_BYTES, join, parse, show

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


_PROBLEMS = {  # in place of pydantic's messages, which use terms of Python
    "missing": ("missing", "add it"),
    "unexpected_keyword_argument": ("unknown key", "remove it"),
    "dataclass_type": ("must be an object", "put it in braces"),
    "dict_type": ("must be an object", "put it in braces"),
    "tuple_type": ("must be an array", "put it in brackets"),
}
_AGREEMENT = 1e-9  # of form and table; they were written with less, but another processor rounds otherwise
_ADAPTER: TypeAdapter[ScheduleFile] = TypeAdapter(cast(Any, ScheduleFile))


def dumps(file: ScheduleFile) -> str:
    """The canonical text of a schedule: ASCII, ending in a newline."""
    tree = _ADAPTER.dump_python(file, mode="json")
    if not file.provenance.spent:  # files older than this field keep their text and hash
        del tree["provenance"]["spent"]
    for control in tree["controls"]:
        if control["scale"] == "linear":  # for the same reason
            del control["scale"]
    for name in EXTRAS:
        if not tree[name]:
            del tree[name]
    if form := tree.get("form"):
        for name in ("features", "edges", "body"):  # those of the other kind, and no features
            if not form[name]:
                del form[name]
    return _canonical(tree, "") + "\n"


def loads(text: str | bytes, path: str) -> ScheduleFile:
    """Reads a schedule from JSON text; controls get the names that they have now.

    Args:
        text: JSON, at most 1 MiB; need not be canonical.
        path: prefix of error messages, usually the path of the file.

    Raises:
        MetaschedError: not a valid schedule; the message names the place: ``schedule.json: values.weight_noise[2][5]``.
    """
    try:
        tree = parse(text)
        _check_version(tree)
        file = renamed(validated(tree))
        if file.form is not None:
            from metasched.exchange.form import check_form

            check_form(file, _AGREEMENT)
        return file
    except MetaschedError as error:
        where = f"{path}: {error.path}" if error.path else path
        raise MetaschedError(where, error.problem, error.fix) from None


def write_schedule(path: str | os.PathLike[str], file: ScheduleFile) -> None:
    """Writes a schedule file atomically.

    Raises:
        MetaschedError: the file would exceed the limit of ``read_schedule``, 1 MiB.
    """
    from metasched.io.atomic import write_atomic

    data = dumps(file).encode("ascii")
    if len(data) > MAX_BYTES:
        raise MetaschedError(str(path), f"would be larger than {MAX_BYTES} bytes", "use fewer knots")
    write_atomic(Path(path), data)


def read_schedule(path: str | os.PathLike[str]) -> ScheduleFile:
    """Reads a schedule file; see ``loads``.

    Args:
        path: of the file, with a path separator or the ending ``.json``; or the name of a learned schedule that comes
            with the package.

    Raises:
        MetaschedError: the file cannot be read or is not a valid schedule, or there is no schedule of that name.
    """
    file = file_of(path)
    if file is None:
        raise _without_file(str(path))
    data = read_regular(file, MAX_BYTES, "give the path of a schedule file")
    return loads(data, printable(os.fspath(path)))


def _without_file(named: str) -> MetaschedError:
    from metasched.schedules.table import method_of_hand_coded

    if named in method_of_hand_coded():
        problem = "is hand-coded: a function of any layers, with no table of values"
        return MetaschedError(named, problem, "use metasched.load, or `metasched export` for the values on VGG8")
    return unknown_schedule("schedule", named)


def _check_version(tree: Any) -> None:
    """Raises for another format or version; called first, because other versions may have other fields."""
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise MetaschedError(
            "format", "this is not a schedule file", f'give one with "format": "{FORMAT}" at the top level'
        )
    version = tree.get("version")
    if type(version) is not int or version not in VERSIONS:  # True == 1
        known = ", ".join(map(str, VERSIONS))
        raise MetaschedError(
            "version", f"unknown version {show(version)}; known: {known}", "update metasched or export it again"
        )


def validated(tree: Any) -> ScheduleFile:
    """The schedule of a tree of plain values.

    Raises:
        MetaschedError: not a valid schedule; the message names the place of the first problem.
    """
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise _first_problem(error, tree) from None


def _first_problem(error: ValidationError, tree: Any) -> MetaschedError:
    errors = error.errors(include_url=False)
    kind, path = errors[0]["type"], _path(errors[0], tree)
    own = errors[0].get("ctx", {}).get("error")
    if isinstance(own, MetaschedError):  # from a check of a record; its path is relative to the record
        return MetaschedError(f"{path}.{own.path}" if path else own.path, own.problem, own.fix)
    if kind in _PROBLEMS:
        return MetaschedError(path, *_PROBLEMS[kind])
    # a union reports one error for each of its members, all with the same path
    needed = " or ".join(e["msg"].partition(" should ")[2] for e in errors[:5] if _path(e, tree) == path)
    needed = needed.replace(" or be ", " or ").replace(" after validation", "")
    return MetaschedError(path, f"must {needed}, got {show(errors[0]['input'])}", "correct it")


def _path(error: ErrorDetails, tree: Any) -> str:
    """The path of an error in the text; pydantic's location continues inside values and keys."""
    path = ""
    for part in error["loc"]:
        members: dict[Any, Any] = dict(enumerate(tree)) if isinstance(tree, list) else tree
        if not isinstance(members, dict) or (part not in members and error["type"] != "missing"):
            break
        path, tree = join(path, part), members.get(part)
    return path


def _canonical(value: Any, indent: str) -> str:
    """JSON text with sorted keys; a list of plain values, such as a curve, is one line."""
    deeper = indent + " "
    if isinstance(value, dict) and value:
        members = [f"{json.dumps(key)}: {_canonical(value[key], deeper)}" for key in sorted(value)]
        return "{\n" + ",\n".join(deeper + member for member in members) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(deeper + _canonical(item, deeper) for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
