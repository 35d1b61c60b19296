"""Import of schedules found by population-based training: policy files of Ray Tune.

Ray Tune writes a file ``pbt_policy_<trial>.txt`` for each trial that has copied another one. Each line is a JSON array

    [target tag, source tag, target's iteration, source's iteration, source's configuration, new configuration]

which records that the target trial copied the source's weights and continued with a new configuration. The history of
the final trial is the chain that ends with the last line: the target of each line must be the source of the next one.
Lines above the first break of this rule were overwritten and are ignored. Source: Ray, ``tune/schedulers/pbt.py``
(``PopulationBasedTrainingReplay``), whose replay we follow.

Files are untrusted: they are read strictly, with the limits of schedule files, and nothing in them is executed.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metasched.core.errors import MetaschedError, printable, unknown_name
from metasched.core.layer import Layer
from metasched.exchange.export import export
from metasched.exchange.format import MAX_KNOTS, Provenance, ScheduleFile
from metasched.exchange.former import predecessors
from metasched.io.reading import read_regular
from metasched.io.strict_json import MAX_BYTES, join, parse, show
from metasched.methods.base import Control

_FIX = "give a pbt_policy_*.txt that Ray Tune has written"
_MAX_CHANGES = MAX_KNOTS // 2  # the other knots are for ends and dwells


class Change(NamedTuple):
    """A configuration, the iteration from which it holds, and its place in the file."""

    iteration: int
    config: Mapping[str, Any]
    place: str


def read_policy(path: str | os.PathLike[str]) -> list[Change]:
    """The configurations of the trial of a policy file, starting with the initial one.

    Raises:
        MetaschedError: the file cannot be read, is larger than 1 MiB, or a line does not have the form above.
    """
    where = printable(os.fspath(path))
    lines = read_regular(path, MAX_BYTES, _FIX).removesuffix(b"\n").split(b"\n")
    if len(lines) > _MAX_CHANGES:
        raise MetaschedError(where, f"has {len(lines)} lines, more than {_MAX_CHANGES}", _FIX)
    rows = [_row(line, f"{where}: line {number}") for number, line in enumerate(lines, 1)]
    chain = [rows[-1]]
    for row in reversed(rows[:-1]):
        if row.target != chain[0].source:
            break
        chain.insert(0, row)
    first = chain[0]
    changes = [Change(0, first.before, f"{first.place}[4]")]
    for row in chain:
        if row.iteration < changes[-1].iteration:
            problem = f"is {row.iteration}, before that of the line above, {changes[-1].iteration}"
            raise MetaschedError(f"{row.place}[3]", problem, _FIX)
        changes.append(Change(row.iteration, row.after, f"{row.place}[5]"))
    return changes


def import_policy(
    path: str | os.PathLike[str],
    *,
    total: int,
    name: str,
    method_name: str,
    method_parameters: Mapping[str, str | bool | int | float | None],
    controls: Sequence[Control],
    layers: Sequence[Layer],
) -> ScheduleFile:
    """The schedule of a policy file: a step function that changes at progress iteration / total.

    The key of a control is its name, for all layers, or ``<control>/<layer>`` for one layer; a former name counts for
    each control that it became. Other keys, such as learning rates, are ignored. Where a control must be at its end
    (``end``, ``dwell``), it is, whatever the file says.

    Args:
        path: path of the policy file.
        total: iterations of the whole run, at least 1.
        name: name of the schedule in its provenance.
        method_name, method_parameters, controls: the method of the schedule.
        layers: layers of the network.

    Raises:
        MetaschedError: see ``read_policy``; a control is missing, not a number, out of range or against its direction;
            the network has no such layer; a change comes after the end of the run.
    """
    import torch

    changes = read_policy(path)
    if total < 1:
        raise MetaschedError("--total", f"must be at least 1, got {total}", "give the iterations of the whole run")
    last = changes[-1]
    if last.iteration >= total:
        problem = f"changes at iteration {last.iteration}, but the whole run has {total}"
        raise MetaschedError(last.place, problem, "give the iterations of the whole run with --total")
    played: list[dict[str, list[float]]] = []
    for change in changes:
        played.append(_values(change, method_name, controls, layers))
        if len(played) > 1:
            _check_directions(change.place, played[-2], played[-1], controls, layers)

    times = [change.iteration / total for change in changes]
    knots = {0.0, *times}
    knots |= {1 - control.dwell for control in controls if control.end is not None} | {1.0}

    def schedule(progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        values = {}
        for control in controls:
            rows = []
            for u in progress.tolist():
                now = bisect_right(times, u) - 1  # of several changes at the same progress, the last one holds
                ended = control.end is not None and u >= 1 - control.dwell
                rows.append([control.end] * len(layers) if ended else played[now][control.name])
            values[control.name] = torch.tensor(rows, dtype=torch.float64)
        return values

    citation = f"population-based training by Ray Tune: {len(changes) - 1} changes in {total} iterations"
    return export(
        schedule,
        method_name=method_name,
        method_parameters=method_parameters,
        controls=controls,
        layers=layers,
        knots=torch.tensor(sorted(knots), dtype=torch.float64),
        interpolation="previous",
        provenance=Provenance(kind="learned", name=name, citation=citation),
    )


class _Row(NamedTuple):
    target: str
    source: str
    iteration: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    place: str


def _row(line: bytes, place: str) -> _Row:
    try:
        row = parse(line)
    except MetaschedError as error:
        inner = error.path.removeprefix("line 1 ")
        raise MetaschedError(
            f"{place}{'' if inner.startswith('[') else ' '}{inner}".rstrip(), error.problem, _FIX
        ) from None
    if not isinstance(row, list) or len(row) != 6:
        raise MetaschedError(place, "must be an array of 6", _FIX)
    for i, (value, kind, what) in enumerate(zip(row, _KINDS, _WHAT, strict=True)):
        if type(value) is not kind or (isinstance(value, int) and value < 0):  # isinstance accepts True as an integer
            raise MetaschedError(f"{place}[{i}]", f"must be {what}, got {show(value)}", _FIX)
    target, source, _, iteration, before, after = row
    return _Row(target, source, iteration, before, after, place)


_KINDS = (str, str, int, int, dict, dict)
_WHAT = ("text", "text", "a count", "a count", "an object", "an object")


def _values(
    change: Change, method: str, controls: Sequence[Control], layers: Sequence[Layer]
) -> dict[str, list[float]]:
    """{control: one value per layer}."""
    names = [layer.name for layer in layers]
    written = {control.name: (control.name, *predecessors(method, control.name)) for control in controls}
    known = {name for each in written.values() for name in each}
    for key in change.config:
        control, slash, layer = key.partition("/")
        if slash and control in known and layer not in names:
            raise unknown_name(join(change.place, key), layer[:64], names)
    return {c.name: [_value(change, c, written[c.name], name) for name in names] for c in controls}


def _value(change: Change, control: Control, written: Sequence[str], layer: str) -> float:
    """The value for a layer, under one of the names that the control may be written with."""
    keys = [key for name in written for key in (f"{name}/{layer}", name)]
    key = next((key for key in keys if key in change.config), None)
    if key is None:
        problem = f"has neither {control.name} nor {control.name}/{layer}"
        raise MetaschedError(change.place, problem, "use the names of the controls as keys")
    value = change.config[key]
    if type(value) not in (int, float) or not control.low <= value <= control.high:
        problem = f"must be a number in [{control.low!r}, {control.high!r}], got {show(value)}"
        raise MetaschedError(join(change.place, key), problem, f"correct it to the range of {control.name}")
    return float(value)


def _check_directions(
    place: str,
    before: Mapping[str, Sequence[float]],
    after: Mapping[str, Sequence[float]],
    controls: Sequence[Control],
    layers: Sequence[Layer],
) -> None:
    for control in controls:
        sign = {"free": 0, "nonincreasing": -1, "nondecreasing": 1}[control.direction]
        for layer, old, new in zip(layers, before[control.name], after[control.name], strict=True):
            if sign * (new - old) < 0:
                problem = f"{control.name} of {layer.name} is {control.direction}, but goes from {old!r} to {new!r}"
                raise MetaschedError(
                    place, problem, "search only among schedules that respect the directions of the method's controls"
                )
