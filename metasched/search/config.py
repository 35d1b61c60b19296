"""The section ``tune`` of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Int, Positive, Repeats, RowOf, Word
from metasched.search.table import SEARCHES


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TuneConfig:
    """A hand-coded family, or the numbers of `schedule.directions`, tuned by search: `metasched tune`."""

    search: Annotated[Word, RowOf(SEARCHES)] = "tpe"
    """how the family is searched"""
    space: Literal["family", "directions"] = "family"
    """what is searched: the hand-coded family, or the numbers of `schedule.directions`"""
    inner_steps: Positive = 20_000
    """training steps in all, the finalists' included: as many as learning took, for a fair comparison"""
    runs: Repeats = 2
    """fresh inner runs that a candidate is scored by"""
    finalists: Repeats = 5
    """best candidates that are judged again; from 2 on, the start is one of them"""
    final_runs: Repeats = 8
    """fresh inner runs, the same for all finalists, that decide between them"""
    population: Annotated[Int, Field(ge=5, le=10_000)] = 20
    """pbt only: members of a population"""
    interval: Positive = 5
    """pbt only: steps between two exchanges"""
