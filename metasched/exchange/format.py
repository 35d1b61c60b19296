"""The records of a schedule file, format versions 1 to 3. Construction validates: every instance is a valid schedule.

What only later versions have is in extras.py: in version 2 also layers of any kind, in version 3 feedback.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import FailFast, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from metasched.core.errors import MetaschedError
from metasched.core.layer import Kind, Quantizes
from metasched.exchange.extras import FormEntry, GainEntry, Membership, RecipeEntry, Reference
from metasched.exchange.fields import (
    CLOSED,
    CLOSED_MAP,
    MAX_CONTROLS,
    MAX_GAINS,
    MAX_KNOTS,
    MAX_LAYERS,
    MAX_RUNS,
    Boolean,
    Curves,
    Digest,
    Integer,
    LayerName,
    Name,
    Natural,
    Number,
    Package,
    Positive,
    Share,
    Text,
    check_length,
    check_unique,
)
from metasched.io.strict_json import join

FORMAT = "metasched.schedule"
VERSIONS = (1, 2, 3)
SINCE = {"form": 2, "task": 2, "reference": 2, "recipe": 2, "portfolio": 2, "feedback": 3}  # fields by version
EXTRAS = tuple(SINCE)
KINDS = get_args(Kind)  # of layers, in version 1
_DWELL_ROUNDING = 1e-9  # 1 - 0.9 is not exactly 0.1 in binary


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class MethodEntry:
    """The quantization method that the schedule is for."""

    name: Name
    """name of the method, such as ana, inq, joint or ste"""
    parameters: Annotated[dict[Name, Text | Boolean | Integer | Number | None], CLOSED_MAP]
    """fixed parameters of the method"""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class ControlEntry:
    """One number per layer that the method reads at every step; see ``metasched.methods.base.Control``."""

    name: Name
    low: Number
    """smallest legal value"""
    high: Number
    """largest legal value"""
    unit: Text
    """what the value 1.0 means"""
    direction: Literal["free", "nonincreasing", "nondecreasing"]
    """how the value may change during training"""
    end: Number | None
    """value at progress 1; null: any value"""
    dwell: Share
    """final share of the run during which the value equals `end`; 0: only in the last step"""
    granularity: Literal["layer", "channel", "network"]
    """what one value applies to"""
    gradient: Literal["path", "surrogate", "none"]
    """derivative in the control: true (path), of a relaxed or straight-through model (surrogate), or none"""
    scale: Literal["linear", "log"] = "linear"
    """whether the control or its logarithm is learned and searched; left out of the file if linear"""

    @model_validator(mode="after")
    def _check(self) -> ControlEntry:
        if self.low > self.high:
            raise MetaschedError("low", f"must be at most high = {self.high!r}, got {self.low!r}", "correct one")
        if not math.isfinite(self.high - self.low):  # the difference overflows, so that values cannot be interpolated
            raise MetaschedError("high", f"is beyond float64 from low = {self.low!r}: {self.high!r}", "correct one")
        if self.scale == "log" and self.low <= 0:
            raise MetaschedError("low", f"must be above 0 on a log scale, got {self.low!r}", "correct it")
        if self.end is not None and not self.low <= self.end <= self.high:
            raise MetaschedError("end", f"must lie in [{self.low!r}, {self.high!r}], got {self.end!r}", "correct one")
        return self


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class LayerEntry:
    """A convolution or linear layer with the activation after it; see ``metasched.core.layer.Layer``."""

    name: LayerName
    """dotted name of the module in the network"""
    depth: Share
    """relative depth: i / (L - 1) for layer i = 0 .. L - 1"""
    kind: Name
    """conv, linear, or from version 2 on any other"""
    quantizes: Quantizes
    fan_in: Positive
    """number of inputs that each output sums over"""
    num_weights: Positive
    """number of elements of the weight"""
    bits: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
    """log2 of the number of weight levels"""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Metric:
    """The headline number of a learned schedule."""

    name: Text
    value: Number
    """mean over the runs"""
    n: Positive
    """number of runs"""
    interval: tuple[Number, Number] | None = None
    """95 % confidence interval of the mean"""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Spent:
    """Training steps that were spent on finding the schedule, by one estimator or search."""

    by: Name
    """estimator or search, such as es or tpe; tune_lr: choosing the learning rate; best: choosing the initial schedule;
    confirm: playing both once more"""
    inner_steps: Natural
    """training steps; backward passes through them, for hypergradients, are not counted"""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Provenance:
    """Origin of the schedule."""

    kind: Literal["learned", "tuned", "hand-coded"]
    name: Name
    """name of the experiment or of the hand-coded schedule"""
    citation: Text | None = None
    """source of a hand-coded schedule, and what it requires"""
    config_hash: Digest | None = None
    """hash of the experiment's configuration, in hexadecimal"""
    seeds: Annotated[tuple[Natural, ...], Field(max_length=MAX_RUNS), FailFast()] = ()
    tasks: Annotated[tuple[Text, ...], Field(max_length=MAX_RUNS), FailFast()] = ()
    """tasks on which it was learned"""
    outer_steps: Natural | None = None
    versions: Annotated[dict[Package, Text], CLOSED_MAP] = Field(default_factory=dict)
    """versions of the packages with which it was learned"""
    metric: Metric | None = None
    spent: Annotated[tuple[Spent, ...], Field(max_length=MAX_RUNS), FailFast()] = ()
    """cost of finding it, in order, including that of the initial schedule; left out of the file if empty"""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class ScheduleFile:
    """A schedule of a method's controls for the layers of a network."""

    format: Literal["metasched.schedule"] = FORMAT
    version: Literal[1, 2, 3] = 3
    """the lowest that can say what the file holds, whatever was given"""
    method: MethodEntry
    controls: Annotated[tuple[ControlEntry, ...], Field(max_length=MAX_CONTROLS), FailFast()]
    progress: Annotated[tuple[Share, ...], Field(min_length=2, max_length=MAX_KNOTS), FailFast()]
    """knots, increasing from 0 at the first training step to 1 at the last one"""
    layers: Annotated[tuple[LayerEntry, ...], Field(min_length=1, max_length=MAX_LAYERS), FailFast()]
    values: Annotated[dict[Name, Curves], CLOSED_MAP]
    """control -> [layer][knot]"""
    interpolation: Literal["linear", "previous"]
    """between knots: linear, or the value of the previous knot"""
    provenance: Provenance
    form: FormEntry | None = None
    """the function that the table is a sample of; left out of the file if there is none, as all that follows"""
    task: Annotated[dict[Name, Number], CLOSED_MAP] = Field(default_factory=dict)
    """features of the task that it was learned on; the table is for it"""
    reference: Reference | None = None
    recipe: RecipeEntry | None = None
    portfolio: Membership | None = None
    feedback: Annotated[tuple[GainEntry, ...], Field(max_length=MAX_GAINS), FailFast()] = ()
    """how controls follow what a run measures of itself"""

    @property
    def extras(self) -> dict[str, Any]:
        """What it holds of that which version 1 has not, {field: value}."""
        return {name: value for name in EXTRAS if (value := getattr(self, name))}

    @model_validator(mode="after")
    def _check(self) -> ScheduleFile:
        object.__setattr__(self, "version", self._version())
        _check_progress(self.progress)
        check_unique("controls", [control.name for control in self.controls])
        check_unique("layers", [layer.name for layer in self.layers])
        declared = {control.name: control for control in self.controls}
        for name in sorted(declared.keys() - self.values.keys()):
            raise MetaschedError(join("values", name), "missing", "give an array of curves, one for each layer")
        for name in sorted(self.values.keys() - declared.keys()):
            raise MetaschedError(join("values", name), "not declared in controls", "declare it or remove it")
        for name, curves in self.values.items():
            path = join("values", name)
            check_length(path, len(curves), "layer", len(self.layers))
            for i, curve in enumerate(curves):
                check_length(f"{path}[{i}]", len(curve), "knot", len(self.progress))
                _check_curve(f"{path}[{i}]", curve, self.progress, declared[name])
        if self.form is not None:
            _check_form(self.form, self)
        _check_feedback(self)
        return self

    def _version(self) -> int:
        """The lowest version that can say what the file holds."""
        others = [i for i, layer in enumerate(self.layers) if layer.kind not in KINDS]
        for name in self.extras:
            if self.version < SINCE[name]:
                fix = f"set version to {SINCE[name]}, or remove it"
                raise MetaschedError(name, f"is not a field of version {self.version}", fix)
        if self.version == 1:
            for i in others:
                problem = f"must be 'conv' or 'linear' in version 1, got {self.layers[i].kind!r}"
                raise MetaschedError(f"layers[{i}].kind", problem, "set version to 2")
        return max([1, *(SINCE[name] for name in self.extras), *(2 for _ in others)])


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a schedule file.

    It describes each value on its own. It does not express that shapes agree, that knots increase, or that values
    satisfy their control; ``read_schedule`` checks these too.

    >>> json_schema()["properties"]["version"]["enum"]
    [1, 2, 3]
    """
    schema = TypeAdapter(cast(Any, ScheduleFile)).json_schema()
    required = [name for name in schema["properties"] if name not in EXTRAS]  # defaults of the others are Python's
    old = {"layers": {"items": {"properties": {"kind": {"enum": list(KINDS)}}}}}
    first, second = (
        {"if": {"properties": {"version": {"const": version}}}, "then": {"properties": properties}}
        for version, properties in (
            (1, old | dict.fromkeys(EXTRAS, False)),
            (2, {name: False for name, since in SINCE.items() if since > 2}),
        )
    )
    rest = {"required": required, **first, "else": second}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, **rest}


def _check_progress(progress: tuple[float, ...]) -> None:
    if progress[0] != 0:
        raise MetaschedError("progress[0]", f"must be 0, got {progress[0]!r}", "start at the first training step")
    if progress[-1] != 1:
        last = f"progress[{len(progress) - 1}]"
        raise MetaschedError(last, f"must be 1, got {progress[-1]!r}", "end at the last training step")
    for k, (before, after) in enumerate(pairwise(progress), start=1):
        if after <= before:
            problem = f"must be greater than the previous knot, {before!r}, got {after!r}"
            raise MetaschedError(f"progress[{k}]", problem, "sort the knots and remove duplicates")


def _check_curve(path: str, curve: tuple[float, ...], progress: tuple[float, ...], control: ControlEntry) -> None:
    low, high, end = control.low, control.high, control.end
    for k, value in enumerate(curve):
        if not low <= value <= high:
            problem = f"must lie in [{low!r}, {high!r}], the range of {control.name}, got {value!r}"
            raise MetaschedError(f"{path}[{k}]", problem, "correct the value or the range")
    sign = {"free": 0, "nonincreasing": -1, "nondecreasing": 1}[control.direction]
    for k, (before, after) in enumerate(pairwise(curve), start=1):
        if sign * (after - before) < 0:
            problem = f"{control.name} is {control.direction}, but goes from {before!r} to {after!r}"
            raise MetaschedError(f"{path}[{k}]", problem, "correct the value or the direction")
    if end is not None:
        dwelling = max(k for k, u in enumerate(progress) if u <= 1 - control.dwell + _DWELL_ROUNDING)
        for k, value in enumerate(curve[dwelling:], start=dwelling):
            if value != end:
                problem = f"must be {end!r}, the end value of {control.name}, got {value!r}"
                fix = f"stay there over the last {control.dwell!r} of the run" if control.dwell else "end there"
                raise MetaschedError(f"{path}[{k}]", problem, fix)


def _check_form(form: FormEntry, file: ScheduleFile) -> None:
    """What can be told without evaluating it; form.py does that."""
    names = [control.name for control in file.controls]
    for i, name in enumerate(form.learned):
        if name not in names:
            raise MetaschedError(f"form.learned[{i}]", f"{name!r} is not declared in controls", "declare it")
    if list(form.learned) != [name for name in names if name in form.learned]:
        raise MetaschedError("form.learned", "has another order than controls", "use their order")
    check_length("progress", len(file.progress), "knot of the form", form.knots)
    for k, u in enumerate(file.progress):
        if u != k / (form.knots - 1):
            problem = f"must be {k / (form.knots - 1)!r}, as the knots of a form are evenly spaced, got {u!r}"
            raise MetaschedError(f"progress[{k}]", problem, "correct it, or remove the form")
    if file.interpolation != "linear":
        problem = f"must be 'linear', as a form is between its knots, got {file.interpolation!r}"
        raise MetaschedError("interpolation", problem, "correct it, or remove the form")


def _check_feedback(file: ScheduleFile) -> None:
    """Each control and feature once, of a declared control, with as many numbers as it takes."""
    declared = {control.name: control for control in file.controls}
    for i, gain in enumerate(file.feedback):
        if gain.control not in declared:
            raise MetaschedError(
                f"feedback[{i}].control", f"{gain.control!r} is not declared in controls", "declare it"
            )
        needed = 1 if declared[gain.control].granularity == "network" else 2
        check_length(f"feedback[{i}].numbers", len(gain.numbers), "number of such a control", needed)
    check_unique("feedback", [f"{gain.control} by {gain.feature}" for gain in file.feedback], of="")
