"""Summary of a schedule file: a few lines (``metasched show``) or a dict (``--json``)."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from typing import Any

from metasched.exchange.extras import FormEntry, reads
from metasched.exchange.format import ControlEntry, ScheduleFile
from metasched.exchange.schedule_file import dumps
from metasched.tracking.console import Console

_COLUMNS = 5


def summarize(file: ScheduleFile) -> dict[str, Any]:
    """Everything except the values: method, controls, layers, size, provenance and hash."""
    return {
        "format": file.format,
        "version": file.version,
        "sha256": hashlib.sha256(dumps(file).encode()).hexdigest(),
        "method": asdict(file.method),
        "controls": [asdict(control) for control in file.controls],
        "layers": [layer.name for layer in file.layers],
        "knots": len(file.progress),
        "interpolation": file.interpolation,
        "provenance": asdict(file.provenance),
        **_extras(file),
    }


def show_schedule(file: ScheduleFile, console: Console) -> None:
    """Prints the summary and, for each control, its values in every layer at a few knots."""
    for line in _lines(file):
        console.note(line)
    last = len(file.progress) - 1
    knots = sorted({round(i * last / (_COLUMNS - 1)) for i in range(_COLUMNS)})
    columns = ["layer", "depth", *(f"u = {file.progress[k]:.3g}" for k in knots)]
    for control in file.controls:
        curves = zip(file.layers, file.values[control.name], strict=True)
        rows = [[layer.name, layer.depth, *(curve[k] for k in knots)] for layer, curve in curves]
        console.table(_title(control), columns, rows)


def _lines(file: ScheduleFile) -> list[str]:
    origin = file.provenance
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(file.method.parameters.items()))
    lines = [
        f"{origin.name}: a {origin.kind} schedule for {file.method.name} ({parameters or 'no parameters'})",
        f"{len(file.layers)} layers, {len(file.progress)} knots, interpolation {file.interpolation}",
    ]
    if file.form is not None:
        lines.append(_form_line(file.form))
    if file.portfolio is not None:
        lines.append(f"number {file.portfolio.rank} of the portfolio {file.portfolio.name}")
    if origin.citation:
        lines.append(f"source: {origin.citation}")
    if origin.outer_steps is not None:
        lines.append(f"learned in {origin.outer_steps} outer steps on {', '.join(origin.tasks) or 'unnamed tasks'}")
    if origin.spent:
        lines.append(
            "found in " + " + ".join(f"{spent.inner_steps} inner steps by {spent.by}" for spent in origin.spent)
        )
    if origin.metric:
        interval = origin.metric.interval
        bounds = f", 95 % interval {interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
        lines.append(f"{origin.metric.name}: {origin.metric.value:.4g} (n = {origin.metric.n}{bounds})")
    for what in ("floor", "ceiling"):
        if file.reference is not None and (measured := getattr(file.reference, what)) is not None:
            low, high = measured.interval or (math.nan, math.nan)
            bounds = f", 95 % interval of the difference {low:+.4g} to {high:+.4g}" if measured.interval else ""
            lines.append(f"{what} {measured.name}: {measured.score:.4g} (n = {measured.n}{bounds})")
    return lines


def _form_line(form: FormEntry) -> str:
    """What a parametric file is, and what it reads of a task."""
    what = f"a {form.kind} on {form.base}, in {len(form.numbers[0])} numbers"
    read = ", ".join(reads(form)) or "nothing of the task"
    return f"parametric: {what}; other networks play it at their own layers; it reads {read}"


def _extras(file: ScheduleFile) -> dict[str, Any]:
    """What a file of version 2 has beside, without the numbers of its form."""
    own = {name: value if name == "task" else asdict(value) for name, value in file.extras.items()}
    if file.form is not None:
        own["form"] = {"kind": file.form.kind, "base": file.form.base, "learned": list(file.form.learned)}
        own["form"]["reads"] = list(reads(file.form))
    return own


def _title(control: ControlEntry) -> str:
    end = "" if control.end is None else f", ends at {control.end:g}"
    return f"{control.name} in [{control.low:g}, {control.high:g}] ({control.unit}), {control.direction}{end}"
