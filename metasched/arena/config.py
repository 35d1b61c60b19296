"""The section ``arena`` of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from metasched.arena.table import ARMS
from metasched.core.field_types import STRICT, Int, PathText, Positive, Refused, Repeats, RowOf, Word, refusal


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ArmEntry:
    """One arm, or several of a kind."""

    kind: Annotated[Word, RowOf(ARMS)]
    """what is played"""
    of: PathText | None = None
    """name or path of a schedule, name of a search, path of a store of runs, or name or path of a portfolio"""
    runs: Positive | None = None
    """search only: training runs in all, those that judge its finalists included"""
    first: Annotated[Int, Field(ge=1, le=8)] | None = None
    """portfolio only: how many of its schedules are tried"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        spec = ARMS[self.kind]
        for field in ("of", "runs", "first"):
            value = getattr(self, field)
            if value is None and field in spec.needs:
                raise refusal("arena", Refused(field, value, f"an arm {self.kind} needs it", f"give {field}"))
            if value is not None and field not in (*spec.needs, *spec.may):
                raise refusal("arena", Refused(field, value, f"an arm {self.kind} does not read it", "leave it out"))
        return self

    @property
    def label(self) -> str:
        """What it is called where it stands for one arm."""
        if self.kind == "search":
            return f"{self.of}_{self.runs}"
        return f"portfolio_{self.first}" if self.kind == "portfolio" else self.kind


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ArenaConfig:
    """Arms on many tasks: `metasched arena run`."""

    seeds: Repeats = 8
    """fresh inner runs of each arm on each task and horizon, from the same seeds for all arms"""
    horizons: tuple[Positive, ...] = (1,)
    """multiples of the task's steps; what is chosen or searched is so at 1 alone"""
    part: Literal["test", "validation"] = "test"
    """where the final scores are read; validation: for building a portfolio"""
    rate_runs: Annotated[Int, Field(ge=0, le=10_000)] = 3
    """validation runs of each of five learning rates of float, ste and lsq; 0: they have the experiment's"""
    choice_runs: Repeats = 4
    """validation runs of each schedule where the best of several is chosen"""
    searches: Repeats = 4
    """searches of each kind on each task, from seeds of their own"""
    arms: Annotated[tuple[ArmEntry, ...], Field(max_length=256)] = ()
    """what is played: {kind, of, runs, first} each"""

    @model_validator(mode="after")
    def _once(self) -> Self:
        for field in ("horizons", "arms"):
            given = getattr(self, field)
            if len({*given}) < len(given):
                raise refusal("arena", Refused(field, given, "has an item twice", "leave one of them out"))
        if not self.horizons:
            raise refusal("arena", Refused("horizons", (), "is empty", "give at least one, such as [1]"))
        return self
