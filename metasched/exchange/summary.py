"""Summary of a schedule file: text for a terminal (``metasched show``) or a dict (``--json``).

A control is shown with a sparkline for each layer and its values at the moments at which the curves bend, which are the
same for all layers. Neighbouring layers with the same values share a row.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from itertools import groupby
from typing import Any

import torch

from metasched.exchange.extras import FormEntry, reads
from metasched.exchange.format import ControlEntry, ScheduleFile
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import dumps
from metasched.exchange.sparklines import BLOCKS, moments, sparkline
from metasched.methods import METHODS
from metasched.schedules.feedback import open_loop
from metasched.tracking.console import Console, open_console

_LEVELS = ("levels", "activation_levels")
_NARROW = 70  # columns; a terminal of fewer, as on a telephone, has half of the marks and fewer moments
_MOMENTS, _FEW_MOMENTS = 5, 3
_WIDTH = 20  # marks of a sparkline
_JUST = 1e-12  # in progress, less than any step
_POINTS = 401  # at which curves are looked at, besides their knots


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


def show_schedule(file: ScheduleFile, console: Console, marks: str = BLOCKS, columns: int = 80) -> None:
    """Prints the summary and, for each control, its curve in each layer and the values at the moments where it bends.

    Args:
        file: the schedule.
        console: where it is shown.
        marks: of sparklines, from low to high.
        columns: width of the terminal; narrow ones get shorter lines.
    """
    for line in _lines(file):
        console.note(line)
    if file.feedback:
        _show_feedback(file, console)
    played = PlayedSchedule(file)
    u = _looked_at([played])
    found = played(u, played.layers)
    for control in file.controls:
        curves = found[control.name]
        low, high = float(curves.min()), float(curves.max())
        if low == high:
            console.note(f"{_title(control)}: {low:.4g} in all layers, throughout")
            continue
        at = moments(u, curves, _MOMENTS if columns >= _NARROW else _FEW_MOMENTS)
        rows = []
        for name, i in _grouped([layer.name for layer in played.layers], curves):
            line = sparkline(_resampled(u, curves[:, i], columns), low, high, marks)
            rows.append([name, line, *(f"{float(curves[k, i]):.3g}" for k in at)])
        console.table(_title(control), ["layer", "", *(_moment(u, k) for k in at)], rows)


def schedule_text(file: ScheduleFile) -> str:
    """The same as text of 80 columns."""
    text = StringIO()
    show_schedule(file, open_console(text))
    return text.getvalue()


def show_both(
    first: ScheduleFile, second: ScheduleFile, console: Console, marks: str = BLOCKS, columns: int = 80
) -> None:
    """Prints two schedules beside each other on the layers of the first, with the largest difference of each layer.

    Args:
        first, second: the schedules.
        console: where they are shown.
        marks: of sparklines, from low to high.
        columns: width of the terminal; narrow ones get shorter lines.
    """
    a, b = PlayedSchedule(first), PlayedSchedule(second)
    for letter, file in zip("AB", (first, second), strict=True):
        console.note(f"{letter}  {_lines(file)[0]}")
    if [layer.name for layer in a.layers] != [layer.name for layer in b.layers]:
        console.note("their layers differ: B is shown as it is played on the layers of A")
    if first.feedback or second.feedback:
        both = "both are" if first.feedback and second.feedback else f"{'A' if first.feedback else 'B'} is"
        console.note(f"{both} corrected by what a run measures of itself: without that they are")
    u = _looked_at([a, b])
    ours, theirs = open_loop(a(u, a.layers)), open_loop(b(u, a.layers))
    for control in (c for c in first.controls if c.name in theirs):
        one, other = ours[control.name], theirs[control.name]
        if torch.equal(one, other):
            console.note(f"{_title(control)}: the same")
            continue
        both = torch.cat([one, other])
        low, high, rows = float(both.min()), float(both.max()), []
        for name, i in _grouped([layer.name for layer in a.layers], torch.cat([one, other])):
            lines = [sparkline(_resampled(u, v[:, i], columns), low, high, marks) for v in (one, other)]
            at = int((one[:, i] - other[:, i]).abs().argmax())
            rows.append([name, *lines, f"{float(one[at, i] - other[at, i]):+.3g}", f"{float(u[at]):.3g}"])
        console.table(_title(control), ["layer", "A", "B", "A - B", "at u"], rows)
    for letter, mine, others in (("A", ours, theirs), ("B", theirs, ours)):
        if only := [name for name in mine if name not in others]:
            console.note(f"only in {letter}: {', '.join(only)}")


def _show_feedback(file: ScheduleFile, console: Console) -> None:
    """The gains, as they are in the first and in the last layer, and that the curves are what they correct."""
    rows = []
    for gain in file.feedback:
        a, b = (*gain.numbers, 0.0)[:2]
        rows.append([gain.control, gain.feature, f"{a - b:+.3g}", f"{a + b:+.3g}"])
    console.table("feedback: how far a control follows a feature of the run", ["", "", "first layer", "last"], rows)
    console.note("the curves are open loop: what is played follows from them and what the run measures of itself")


def _looked_at(played: Sequence[PlayedSchedule]) -> torch.Tensor:
    """Progress [T] with the knots of the schedules, and of step functions what is just before each."""
    steps = [one.knots for one in played if one.file.interpolation == "previous"]
    before = [knots.nextafter(torch.zeros_like(knots)) for knots in steps]
    return torch.cat(
        [torch.linspace(0, 1, _POINTS, dtype=torch.float64), *(one.knots for one in played), *before]
    ).unique()


def _moment(u: torch.Tensor, k: int) -> str:
    """Name of moment k of [T]: ``u=0.5``, or ``u<0.5`` for the one just before it."""
    before = k + 1 < len(u) and float(u[k + 1] - u[k]) < _JUST
    return f"u{'<' if before else '='}{float(u[k]):.3g}"


def _resampled(u: torch.Tensor, curve: torch.Tensor, columns: int) -> list[float]:
    """The curve [T] at equal steps of progress, from its first to its last value."""
    at = torch.linspace(0, 1, _WIDTH if columns >= _NARROW else _WIDTH // 2, dtype=torch.float64)
    return curve[(torch.searchsorted(u, at, right=True) - 1).clamp(min=0)].tolist()


def _grouped(names: Sequence[str], curves: torch.Tensor) -> list[tuple[str, int]]:
    """Neighbouring layers with equal curves [T, L]: a name for them, and the index of the first."""
    groups = []
    for _, members in groupby(range(len(names)), key=lambda i: curves[:, i].numpy().tobytes()):
        own = list(members)
        first = own[0]
        name = names[first] if len(own) == 1 else f"{names[first]} to {names[own[-1]]} ({len(own)})"
        groups.append((name, first))
    return groups


def _lines(file: ScheduleFile) -> list[str]:
    origin = file.provenance
    lines = [
        f"{origin.name}: a {origin.kind} schedule for {file.method.name} ({_parameters(file)})",
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


def _parameters(file: ScheduleFile) -> str:
    """The levels, and what differs from the defaults of the method; all of a method that is not known here."""
    method = file.method
    known = METHODS[method.name].config.__dataclass_fields__ if method.name in METHODS else {}
    plain = {name: field.default for name, field in known.items()}
    own = [
        f"{name}={value}"
        for name, value in sorted(method.parameters.items())
        if name in _LEVELS or name not in plain or value != plain[name]
    ]
    return ", ".join(own) or "default parameters"


def _form_line(form: FormEntry) -> str:
    """What a parametric file is, and what it reads of a task."""
    what = f"a {form.kind} on {form.base}, in {len(form.numbers[0])} numbers"
    read = ", ".join(reads(form)) or "nothing of the task"
    return f"parametric: {what}; other networks play it at their own layers; it reads {read}"


def _extras(file: ScheduleFile) -> dict[str, Any]:
    """What a file of a later version has beside, without the numbers of its form."""
    plain = ("task", "feedback")
    own = {name: value if name in plain else asdict(value) for name, value in file.extras.items()}
    if file.feedback:
        own["feedback"] = [asdict(gain) for gain in file.feedback]
    if file.form is not None:
        own["form"] = {"kind": file.form.kind, "base": file.form.base, "learned": list(file.form.learned)}
        own["form"]["reads"] = list(reads(file.form))
    return own


def _title(control: ControlEntry) -> str:
    end = "" if control.end is None else f", ends at {control.end:g}"
    return f"{control.name} in [{control.low:g}, {control.high:g}] ({control.unit}), {control.direction}{end}"
