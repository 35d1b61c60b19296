"""Sphinx directives that generate parts of the documentation from the code and from measured results.

``fields``, ``metrics``, ``metric-axes`` and ``baselines`` are tables of the package's own records, so they are always
up to date. ``measured`` includes tables of results, or a note that there are none yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from metasched.config.fields import FieldInfo, fields
from metasched.io.json_text import json_text
from metasched.tracking.metrics import AXES, METRICS

DOCS = Path(__file__).parent
TOGETHER = re.compile(  # [-1, +1]; (1 to 2); 5 %; 1e-6; n = 16
    r"(\[[+-]?[\d.]+, [+-]?[\d.]+\]|\([\d.]+ to [\d.]+\)|[\d.]+ (?:%|ms|s|KiB|MiB|GiB)(?!\w)"
    r"|[\d.]*\de-\d+|\b[npTk] = [\d.]*\d)"
)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a cell is one line."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def fields_table(section: str) -> str:
    """The fields of one section of the configuration; `experiment` is the section of the fields at the top level."""
    prefix = "" if section == "experiment" else f"{section}."
    chosen = [f for f in fields() if f.path.rpartition(".")[0] == prefix.rstrip(".")]
    assert chosen, section
    rows = [
        (f"`{f.path}`<br>{f.type.replace('|', ' | ')}<br>default `{json_text(f.default)}`", _by_line(f)) for f in chosen
    ]
    return table(("field", "meaning"), rows)


def _by_line(field: FieldInfo) -> str:
    """The description; each of many choices is on a line of its own."""
    choices = field.type.split("|")
    starts = "|".join(map(re.escape, choices))
    return (
        re.sub(rf"(?<=[;.]) (?=(?:{starts}): )", "<br>", field.description) if len(choices) > 3 else field.description
    )


def metrics_table() -> str:
    """The logged metrics, a heading and a table for each family."""
    parts: list[str] = []
    for family, names in groupby(METRICS, key=lambda name: name.partition("/")[0]):
        rows = [(f"`{name}`", METRICS[name].unit, METRICS[name].meaning) for name in names]
        parts += [f"## `{family}/`", table(("metric", "unit", "meaning"), rows)]
    return "\n\n".join(parts)


def axes_table() -> str:
    """The axis of each family of metrics."""
    return table(("metrics", "axis"), [(f"`{names}`", f"`{axis}`") for names, axis in AXES.items()])


def baselines_table() -> str:
    """The hand-coded schedules of all methods, a row for each source."""
    from metasched.schedules.table import families, hand_coded

    names: dict[str, list[str]] = {}
    for family in families():
        for name, schedule in hand_coded(family).items():
            names.setdefault(schedule.citation, []).append(f"`{name}`")
    rows = [("<br>".join(found), re.sub(r"(?<=\w)/(?=\w)", "/<wbr>", source)) for source, found in names.items()]
    return table(("names", "source"), rows)


class _Generated(SphinxDirective):
    def text(self) -> str:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(self.text(), allow_section_headings=True)


class Fields(_Generated):
    """``{fields} meta``: the fields of the section."""

    required_arguments = 1

    def text(self) -> str:
        return fields_table(self.arguments[0])


class Metrics(_Generated):
    """``{metrics}``: the logged metrics."""

    def text(self) -> str:
        return metrics_table()


class MetricAxes(_Generated):
    """``{metric-axes}``: the axes of the metrics."""

    def text(self) -> str:
        return axes_table()


class Baselines(_Generated):
    """``{baselines}``: the hand-coded schedules."""

    def text(self) -> str:
        return baselines_table()


class Measured(_Generated):
    """``{measured} results_*.md``: the matching files of docs/tables in order, or the content if there is none."""

    required_arguments = 1
    has_content = True

    def text(self) -> str:
        files = sorted((DOCS / "tables").glob(self.arguments[0]))
        for file in files:
            self.env.note_dependency(str(file))
        return "\n\n".join(file.read_text("utf-8") for file in files) or "\n".join(self.content)


def keep_together(app: Sphinx, document: nodes.document) -> None:
    """Marks intervals, ranges and numbers with a unit or an exponent: the style sheet keeps them on one line."""
    for text in list(document.findall(nodes.Text)):
        parts = TOGETHER.split(text)  # every second one is a match
        if len(parts) > 1 and isinstance(text.parent, (nodes.paragraph, nodes.strong, nodes.emphasis)):
            marked = [
                nodes.inline("", p, classes=["together"]) if i % 2 else nodes.Text(p) for i, p in enumerate(parts)
            ]
            text.parent.replace(text, marked)


def mark_blocks(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Inserts the double colon that reStructuredText needs before the indented formulas and code of docstrings."""
    for i in range(len(lines) - 2, 0, -1):
        if not lines[i] and lines[i + 1].startswith("    ") and lines[i - 1][:1].strip():
            lines[i : i + 1] = ["", "::", ""]


_LONG = 40  # characters of a cell, or of a word of code
_VALUE = r"[-+]?\d[\d.,]*(e[-+]?\d+)?( ?%| times)?"
_NUMBER = re.compile(rf"({_VALUE})?( ?[\[(]{_VALUE}(, | to ){_VALUE}[\])])?")


def mark_cells(app: Sphinx, document: nodes.document) -> None:
    """Classes for style.css: ``number`` and ``text`` of cells, ``wide`` of tables, ``long`` of long words of code."""
    for entry in document.findall(nodes.entry):
        text = entry.astext()
        if text and _NUMBER.fullmatch(text):
            entry["classes"].append("number")
        elif len(text) > _LONG:
            entry["classes"].append("text")
    for literal in document.findall(nodes.literal):
        if max(map(len, literal.astext().split()), default=0) > _LONG:
            literal["classes"].append("long")
    for group in document.findall(nodes.tgroup):
        if group["cols"] > 5 and isinstance(group.parent, nodes.table):
            group.parent["classes"].append("wide")


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directives, the preprocessing of docstrings for napoleon, and `keep_together`."""
    app.connect("autodoc-process-docstring", mark_blocks, priority=400)
    app.connect("doctree-read", mark_cells)
    app.connect("doctree-read", keep_together)  # after that: numbers of cells are found by their spaces
    for name, directive in {
        "fields": Fields,
        "metrics": Metrics,
        "metric-axes": MetricAxes,
        "baselines": Baselines,
        "measured": Measured,
    }.items():
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
