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

from metasched.config.fields import fields
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
        (f"`{f.path}`", f"`{f.type.replace('|', ' | ')}`", f"`{json_text(f.default)}`", f.description) for f in chosen
    ]
    return table(("field", "type", "default", "meaning"), rows)


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
    """The hand-coded schedules of all methods, with their sources."""
    from metasched.schedules.table import families, hand_coded

    rows = [(f"`{name}`", family, s.citation) for family in families() for name, s in hand_coded(family).items()]
    return table(("name", "method", "source"), rows)


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


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directives, the preprocessing of docstrings for napoleon, and `keep_together`."""
    app.connect("autodoc-process-docstring", mark_blocks, priority=400)
    app.connect("doctree-read", keep_together)
    for name, directive in {
        "fields": Fields,
        "metrics": Metrics,
        "metric-axes": MetricAxes,
        "baselines": Baselines,
        "measured": Measured,
    }.items():
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
