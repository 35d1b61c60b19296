"""The fields of an experiment by dotted path: what the command line offers, and what error messages suggest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from metasched.config.schema import Experiment
from metasched.core.field_types import RowOf
from metasched.methods import METHODS
from metasched.methods.config import MethodConfig


class FieldInfo(NamedTuple):
    """One field of the configuration.

    Attributes:
        path: dotted, ``meta.steps``.
        type: for the reader: ``int``, ``adam|sgd``, ``[int, ...]`` for a list of any length, ``{match, ...}`` for a
            mapping with these fields.
        default: what it is when left out.
        description: the docstring under the field.
    """

    path: str
    type: str
    default: Any
    description: str


def fields(section: type = Experiment, prefix: str = "") -> Iterator[FieldInfo]:
    """All fields of a section and of the sections in it, in the order in which they are written.

    >>> next(f for f in fields() if f.path == "run.dtype").type
    'float32|float64'
    """
    for name, info in section.__pydantic_fields__.items():  # type: ignore[attr-defined]
        path = f"{prefix}{name}"
        if info.annotation is MethodConfig:
            yield from _of_methods(f"{path}.")
        elif is_dataclass(info.annotation):
            yield from fields(info.annotation, f"{path}.")  # type: ignore[arg-type]
        else:
            yield _field(path, info, _description(section, name))


def _field(path: str, info: Any, description: str) -> FieldInfo:
    """A field that is no section; the rows of a table that it names a row of are its type and in its description."""
    table = next((mark.table for mark in info.metadata if isinstance(mark, RowOf)), None)
    if table is None:
        return FieldInfo(path, _type_name(info.annotation), info.default, description)
    about = "; ".join(f"{row.name}: {row.summary}" for row in table.values())
    return FieldInfo(path, "|".join(table), info.default, f"{description}. {about}")


def _description(section: type, name: str) -> str:
    """The docstring under a field, in the section or in the one that it inherits the field from."""
    inherited = (getattr(c, "__pydantic_fields__", {}).get(name) for c in section.__mro__)
    return next((info.description for info in inherited if info is not None and info.description), "")


def _of_methods(prefix: str) -> Iterator[FieldInfo]:
    """What all methods have, then the parameters of each, once each, with the methods that have it."""
    name, *shared = fields(MethodConfig, prefix)
    about = "; ".join(f"{spec.name}: {spec.summary}" for spec in METHODS.values())
    yield name._replace(type="|".join(METHODS), description=about)
    yield from shared
    first: dict[str, FieldInfo] = {}
    readers: dict[str, dict[str, list[str]]] = {}  # path -> description -> methods
    for spec in METHODS.values():
        for field in fields(spec.config, prefix):
            if field.path.removeprefix(prefix) in spec.parameters:
                first.setdefault(field.path, field)
                readers.setdefault(field.path, {}).setdefault(field.description, []).append(spec.name)
    for path, field in first.items():
        texts = [f"{description} ({', '.join(names)})" for description, names in readers[path].items()]
        yield field._replace(description="; ".join(texts))


def names_in(section_path: tuple[str, ...]) -> list[str]:
    """Names of the fields and sections directly in a section; empty where there is no such section.

    >>> "meta" in names_in(()) and "steps" in names_in(("meta",)) and "match" in names_in(("optimizer", "groups", "0"))
    True
    """
    depth = len(section_path)
    paths = [f.path.split(".") for f in fields()]
    known = list(dict.fromkeys(p[depth] for p in paths if tuple(p[:depth]) == section_path and len(p) > depth))
    return known or _names_in_item(section_path)


def _names_in_item(section_path: tuple[str, ...]) -> list[str]:
    """Names of the fields of an item of a list of sections, such as ``optimizer.groups.0``."""
    section: Any = Experiment
    for part in section_path:
        if part.isdigit():
            section = next(iter(get_args(section)), None)
        else:
            info = getattr(section, "__pydantic_fields__", {}).get(part)
            section = info.annotation if info else None
    return list(getattr(section, "__pydantic_fields__", ()))


_PLAIN = {int: "int", float: "float", bool: "true|false", str: "text", type(None): "null", Any: "value"}


def _type_name(annotation: Any) -> str:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if is_dataclass(annotation):
        return "{" + ", ".join(annotation.__pydantic_fields__) + "}"  # type: ignore[attr-defined]
    parts = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(str(p) for p in parts)
    if origin is Annotated:
        return _type_name(parts[0])
    if origin is tuple:
        return "[" + ", ".join("..." if p is Ellipsis else _type_name(p) for p in parts) + "]"
    if origin is dict:
        return "{name: " + _type_name(parts[1]) + "}"
    return "|".join(_type_name(p) for p in parts)  # a union
