"""The section ``compare`` of an experiment."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Int, Repeats, Word


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CompareConfig:
    """The comparison at the end of training and of `metasched compare`."""

    seeds: Annotated[Int, Field(ge=2, le=10_000)] = 16
    """fresh paired seeds"""
    baselines: tuple[Word, ...] | None = None
    """names of hand-coded schedules, of any method (default: all of this method); `ste`, no schedule at all, and
    `float`, the network without quantization, are always compared"""
    horizons: Annotated[tuple[Repeats, ...], Field(max_length=64)] = (1,)
    """multiples of task.steps at which the schedules are played"""
