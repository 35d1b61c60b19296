"""The records that later versions of a schedule file have beside those of version 1: the form first of all.

The form says what function of layers and task the table is a sample of. With the F features x_f of a task,

    numbers = w_0 + sum_f w_f tanh((x_f - centre_f) / spread_f) / sqrt(F),    0 in place of tanh where x_f is not known

are those of the windows of schedules/family.py, or the output weights of the network of schedules/network.py, whose
other weights are the body. Without features there is w_0 alone. Version 3 has the gains of a closed-loop schedule
(schedules/feedback.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import FailFast, Field, model_validator
from pydantic.dataclasses import dataclass

from metasched.core.errors import MetaschedError
from metasched.exchange.fields import (
    CLOSED,
    CLOSED_MAP,
    MAX_CONTROLS,
    MAX_FEATURES,
    MAX_FORM_KNOTS,
    MAX_HIDDEN,
    MAX_NUMBERS,
    MAX_RULES,
    Boolean,
    LongText,
    Name,
    Number,
    Positive,
    Text,
    check_length,
    check_unique,
)

INPUTS = 11  # of the small network: progress, four cosines of it, and six numbers of a layer

RuleEntry = Annotated[dict[Name, LongText | Boolean | Number], CLOSED_MAP]
Row = Annotated[tuple[Number, ...], Field(min_length=1, max_length=MAX_NUMBERS), FailFast()]
Unit = Annotated[tuple[Number, ...], Field(min_length=2, max_length=MAX_HIDDEN + 1), FailFast()]
Units = Annotated[tuple[Unit, ...], Field(min_length=1, max_length=MAX_HIDDEN), FailFast()]


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class FeatureEntry:
    """A number of a task that the form reads; see ``metasched.core.features``."""

    name: Name
    centre: Number
    """what it is counted from"""
    spread: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
    """in units of which it is counted"""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class FormEntry:
    """The schedule as a function of layers and task, of which the table is a sample."""

    kind: Literal["family", "network"]
    """a window with a decay for each control, or a small network that corrects the base"""
    base: Name
    """hand-coded schedule of the method that it starts at, or `floor`: no schedule"""
    knots: Annotated[int, Field(strict=True, ge=2, le=MAX_FORM_KNOTS)]
    """evenly spaced points in progress between which it is linear: those of the table"""
    learned: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_CONTROLS), FailFast()]
    """controls that it gives, in the order of `controls`; the others are those of the base"""
    features: Annotated[tuple[FeatureEntry, ...], Field(max_length=MAX_FEATURES), FailFast()] = ()
    """what it reads of a task; left out of the file if empty"""
    numbers: Annotated[tuple[Row, ...], Field(min_length=1, max_length=1 + MAX_FEATURES), FailFast()]
    """[1 + features][numbers]: what all tasks share, and the change with each feature"""
    edges: Annotated[tuple[Number | None, ...], Field(max_length=MAX_CONTROLS), FailFast()] = ()
    """family only: for each learned control, the bound of its range at which it starts, its logarithm on a log scale;
    null: it starts inside"""
    body: Annotated[tuple[Units, ...], Field(max_length=2), FailFast()] = ()
    """network only: [hidden layer][unit][input, and the bias last]"""

    @model_validator(mode="after")
    def _check(self) -> FormEntry:
        check_unique("learned", list(self.learned), of="")
        check_unique("features", [feature.name for feature in self.features])
        check_length("numbers", len(self.numbers), "row", 1 + len(self.features))
        for i, row in enumerate(self.numbers):
            check_length(f"numbers[{i}]", len(row), "number of the first row", len(self.numbers[0]))
        for name, of in (("edges", "family"), ("body", "network")):
            if bool(getattr(self, name)) != (self.kind == of):
                problem = "is missing" if self.kind == of else f"is that of a {of}, and this is a {self.kind}"
                raise MetaschedError(name, problem, "add it" if self.kind == of else "remove it")
        if self.edges:
            check_length("edges", len(self.edges), "learned control", len(self.learned))
        if self.body:
            hidden = len(self.body[0])
            check_length("body", len(self.body), "hidden layer", 2)
            for i, (units, inputs) in enumerate(zip(self.body, (INPUTS, hidden), strict=True)):
                check_length(f"body[{i}]", len(units), "hidden unit", hidden)
                for j, unit in enumerate(units):
                    check_length(f"body[{i}][{j}]", len(unit), "input and the bias", inputs + 1)
            check_length("numbers[0]", len(self.numbers[0]), "output weight", 2 * len(self.learned) * (hidden + 1))
        return self


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class GainEntry:
    """How one control follows one feature of the run, beside its open-loop values."""

    control: Name
    """which follows"""
    feature: Literal["loss_trend", "distance", "flips"]
    """what it follows"""
    numbers: Annotated[tuple[Number, ...], Field(min_length=1, max_length=2), FailFast()]
    """a, and b but for a network-wide control: the gain is a + b (2 depth - 1)"""


def reads(form: FormEntry) -> tuple[str, ...]:
    """The features of a task that make a difference to a form."""
    return tuple(f.name for f, row in zip(form.features, form.numbers[1:], strict=True) if any(row))


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Measured:
    """A floor or ceiling that the headline number was measured against."""

    name: Text
    """what was played, such as ste"""
    score: Number
    """mean over the runs"""
    n: Positive
    """number of paired runs"""
    interval: tuple[Number, Number] | None = None
    """95 % confidence interval of the difference: this schedule minus it"""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Reference:
    """What the headline number is to be judged by."""

    floor: Measured | None = None
    """no schedule"""
    ceiling: Measured | None = None
    """the float network"""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class RecipeEntry:
    """Which tensors were quantized; see the section `quantize` of an experiment."""

    first: Boolean
    """whether the first layer was"""
    last: Boolean
    """whether the last one was"""
    rules: Annotated[tuple[RuleEntry, ...], Field(max_length=MAX_RULES), FailFast()] = ()
    """exceptions, each with the fields of a rule that it sets"""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Membership:
    """The portfolio that the schedule is an entry of."""

    name: Text
    """as its file was called"""
    rank: Positive
    """its place in the order in which they are tried, from 1"""
