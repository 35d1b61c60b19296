"""The sections ``tune`` and ``allocate`` of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Float, Int, PathText, Positive, Repeats, RowOf, Word
from metasched.search.bits.table import BIT_SEARCHES
from metasched.search.table import SEARCHES


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TuneConfig:
    """A hand-coded family, or the numbers of `schedule.directions`, tuned by search: `metasched tune`."""

    search: Annotated[Word, RowOf(SEARCHES)] = "tpe"
    """how the family is searched"""
    space: Literal["family", "directions"] = "family"
    """what is searched: the hand-coded family, or the numbers of `schedule.directions`"""
    warm_start: PathText | None = None
    """schedules that are tried first: `portfolio`, those of the package for the method and its bits, or the path of a
    portfolio file"""
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AllocateConfig:
    """Bits of the weights by layer under a budget: `metasched allocate`."""

    search: Annotated[Word, RowOf(BIT_SEARCHES)] = "greedy"
    """how allocations are searched"""
    bits: tuple[Annotated[Int, Field(ge=1, le=9)], ...] = (2, 3, 4, 5, 6, 7, 8)
    """the choices of a layer, in levels of the family of `method.levels`"""
    resource: Literal["size", "operations", "latency"] = "size"
    """what is limited: bytes of the deployed network, bit operations, or the times of a table"""
    budget: Annotated[Float, Field(gt=0)] | Annotated[str, Field(pattern=r"^[1-9] bits?$")] = "4 bits"
    """the limit, a number of bytes, bit operations or milliseconds; `4 bits`: what 4 bits in all layers take"""
    latency: PathText | None = None
    """latency only: JSON file with the milliseconds of each layer, `{"conv1": {"2": 0.5, "8": 1.5}, ...}`"""
    score: Literal["rounded", "trained"] = "rounded"
    """rounded: loss on meta-validation of the float network with weights rounded to nearest; trained: score there after
    an inner run of `task.steps` from `schedule.start`, or without a schedule where that is `best`"""
    runs: Repeats = 1
    """trained only: inner runs that an allocation is scored by"""
    evaluations: Positive = 150
    """allocations that are proposed"""
    exploration_decay: Annotated[Float, Field(gt=0, le=1)] = 0.99
    """haq only: factor of the exploration noise from episode to episode"""
