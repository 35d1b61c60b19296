"""The section ``tasks`` of an experiment: the tasks that a schedule is learned or judged on."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Boolean, Float, Int, Positive, Refused, refusal
from metasched.tasks.config import Arguments

FieldName = Annotated[str, Field(pattern=r"^(task|optimizer|method|quantize)(\.[a-z_][a-z0-9_]*)+$", max_length=200)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskEntry:
    """One task, or with ``draw`` a distribution of tasks: the experiment, with some of its fields changed."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    """for logs and files"""
    weight: Annotated[Float, Field(gt=0, le=1e6)] = 1.0
    """its share of the mean over tasks, among the weights of all"""
    set: Annotated[dict[FieldName, Any], Field(max_length=256)] = Field(default_factory=dict)
    """fields of the sections task, optimizer, method and quantize, by dotted path, and their values"""
    draw: Annotated[dict[FieldName, Any], Field(max_length=64)] = Field(default_factory=dict)
    """fields that are drawn: a list of values, or {from: a, to: b}, log-uniform between two positive numbers (whole if
    both are)"""

    count: Annotated[Int, Field(ge=1, le=10_000)] = 1
    """tasks of a distribution in an arena, drawn from the seeds 0 to count - 1"""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for field, among in self.draw.items():
            if field in self.set:
                raise refusal("tasks", Refused("draw", field, f"{field} is set and drawn", "leave one of them out"))
            if (why := _no_range(among)) is not None:
                fix = "give a list of values, or {from: a, to: b} with 0 < a <= b"
                raise refusal("tasks", Refused("draw", among, f"{field} {why}", fix))
        if self.count > 1 and not self.draw:
            fix = "leave it out, or give fields to draw"
            raise refusal("tasks", Refused("count", self.count, "all of them would be the same task", fix))
        return self

    def __hash__(self) -> int:
        return hash((self.name, self.weight, Arguments(self.set), Arguments(self.draw), self.count))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TasksConfig:
    """Several tasks: a schedule is learned over all of them, or judged on each."""

    entries: Annotated[tuple[TaskEntry, ...], Field(max_length=1000)] = ()
    """tasks and distributions of tasks, {name, weight, set, draw, count} each; none: the experiment is one task"""
    per_step: Positive = 4
    """tasks drawn in an outer step, each of which does the inner runs of a step of one task"""
    cheaper: Boolean = True
    """draw entries by weight / sqrt(cost of a run) and weigh their tasks back; false: by weight"""
    normalize: Literal["group", "sign", "none"] = "group"
    """what a task's group of runs is divided by: the root mean square of its differences (of the norms of its exact
    gradients), sign: each by its own size; none: nothing, so that tasks with large losses count most"""
    features: Boolean = True
    """let the schedule depend on the features of a task; false: all tasks share its numbers"""
    examples: Annotated[Int, Field(ge=2, le=10_000)] = 8
    """fresh tasks on which what was learned is confirmed, and as many others on which it is compared at the end"""

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [entry.name for entry in self.entries]
        for name in names:
            if names.count(name) > 1:
                raise refusal("tasks", Refused("entries", name, f"{name!r} occurs twice", "use unique names"))
        return self


def _no_range(among: Any) -> str | None:
    """Why this says nothing to draw from; None if it does."""
    if isinstance(among, list):
        return None if among else "is an empty list"
    if not (isinstance(among, dict) and among.keys() == {"from", "to"}):
        return f"is {among!r}"
    low, high = among["from"], among["to"]
    if any(isinstance(x, bool) or not isinstance(x, int | float) for x in (low, high)):
        return "has a bound that is no number"
    return None if 0 < low <= high else f"goes from {low} to {high}"
