"""The section ``schedule`` of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Int, PathText, Positive, Units, Word


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScheduleConfig:
    """What is learned and where it starts."""

    kind: Literal["network", "family"] = "network"
    """a network, or a family of hand-coded schedules: a window with a decay, of five to seven parameters a control"""
    start: PathText = "best"
    """a schedule by name or file, `floor`: no schedule, or `best`: what is above the floor, or the floor"""
    learn: tuple[Word, ...] | None = None
    """controls that are learned (default: all differentiable ones of the method); the others stay as they start"""
    knots: Annotated[Int, Field(ge=2, le=512)] = 25
    """points in progress that the schedule is linear between"""
    directions: Positive | None = 60
    """network only: at most so many smooth directions of the schedule are learned; null learns all weights"""
    feedback: bool = False
    """also learn how the controls follow what the run measures of itself: the trend of its loss, the distance of the
    weights to their levels, how many codes flip"""
    hidden: Units = 32
    """network only: units of each of the two hidden layers"""
