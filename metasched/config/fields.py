"""The fields of an experiment by dotted path: what the command line offers, and what error messages suggest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from metasched.config.schema import Experiment


class FieldInfo(NamedTuple):
    """One field of the configuration.

    Attributes:
        path: dotted, ``meta.steps``.
        type: for the reader: ``int``, ``adam|sgd``, ``[int, ...]`` for a list of any length.
        default: what it is when left out.
        description: the docstring under the field.
    """

    path: str
    type: str
    default: Any
    description: str


def fields(section: type = Experiment, prefix: str = "") -> Iterator[FieldInfo]:
    """All fields of a section and of the sections in it, in the order in which they are written.

    >>> next(f for f in fields() if f.path == "optimizer.name").type
    'sgd|adam|adamw'
    """
    for name, info in section.__pydantic_fields__.items():  # type: ignore[attr-defined]
        path = f"{prefix}{name}"
        if is_dataclass(info.annotation):
            yield from fields(info.annotation, f"{path}.")  # type: ignore[arg-type]
        else:
            yield FieldInfo(path, _type_name(info.annotation), info.default, info.description or "")


def names_in(section_path: tuple[str, ...]) -> list[str]:
    """Names of the fields and sections directly in a section; empty where there is no such section.

    >>> "meta" in names_in(()) and "steps" in names_in(("meta",))
    True
    """
    depth = len(section_path)
    paths = [f.path.split(".") for f in fields()]
    return list(dict.fromkeys(p[depth] for p in paths if tuple(p[:depth]) == section_path and len(p) > depth))


_PLAIN = {int: "int", float: "float", bool: "true|false", str: "text", type(None): "null"}


def _type_name(annotation: Any) -> str:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    parts = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(str(p) for p in parts)
    if origin is Annotated:
        return _type_name(parts[0])
    if origin is tuple:
        return "[" + ", ".join("..." if p is Ellipsis else _type_name(p) for p in parts) + "]"
    return "|".join(_type_name(p) for p in parts)  # a union
