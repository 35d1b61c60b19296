"""How objects show themselves in a session: what makes them again, in short, and their text as a notebook keeps it."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from html import escape
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_FONT = "font: var(--jp-code-font-size, 13px) Menlo, 'DejaVu Sans Mono', monospace"
_STYLE = f"white-space: pre; overflow-x: auto; {_FONT}"
_INSTALLED = ("site-packages", "dist-packages")


class Printed:
    """What a notebook shows as its text, in a font in which columns are below each other."""

    def _repr_html_(self) -> str:
        return preformatted(str(self))


def preformatted(text: str) -> str:
    """Text as HTML that keeps its lines and columns, whatever font a page gives to ``pre``."""
    return f'<pre style="{_STYLE}">{escape(text)}</pre>'


def short(value: object) -> str:
    """The expression that makes a value, of dataclasses without what has its default.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Point:
    ...     x: int = 0
    ...     y: int = 0
    >>> short((Point(), Point(y=2)))
    '(Point(), Point(y=2))'
    """
    if isinstance(value, tuple | list) and any(map(is_dataclass, value)):
        inside = ", ".join(map(short, value)) + "," * (isinstance(value, tuple) and len(value) == 1)
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    return f"{type(value).__name__}({', '.join(given(value))})"


def given(value: Any) -> Iterator[str]:
    """The fields of a dataclass that differ from their defaults, each as ``name=value``."""
    for field in fields(value):
        own = getattr(value, field.name)
        if field.repr and own != _default(field):
            yield f"{field.name}={short(own)}"


def own_lines(trace: TracebackType | None) -> list[str]:
    """Where an error passed through code that is neither of this package nor of an installed one, outermost first."""
    lines = []
    for frame in extract_tb(trace):
        path = Path(frame.filename)
        library = path.is_relative_to(_PACKAGE) or path.is_relative_to(sysconfig.get_path("stdlib"))
        if not library and not any(name in path.parts for name in _INSTALLED):
            where = str(path) if path.exists() else "cell"  # of a notebook
            within = "" if frame.name.startswith("<") else f", in {frame.name}"
            lines += [f"{where}, line {frame.lineno}{within}:", f"    {frame.line}"]
    return lines


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
