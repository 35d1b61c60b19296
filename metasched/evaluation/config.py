"""The section ``compare`` of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Int, Refused, Repeats, Word, refusal
from metasched.training.optimizers.config import RATE_FACTORS


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CompareConfig:
    """The comparison at the end of training and of `metasched compare`."""

    seeds: Annotated[Int, Field(ge=2, le=10_000)] = 16
    """fresh paired seeds"""
    baselines: tuple[Word, ...] | None = None
    """names of hand-coded schedules, of any method (default: all of this method); always compared are `ste` and `lsq`,
    no schedule at all with fixed and with learned scales, and `float`, the network without quantization"""
    horizons: Annotated[tuple[Repeats, ...], Field(max_length=64)] = (1,)
    """multiples of task.steps at which the schedules are played"""
    tune_floors: Annotated[Int, Field(ge=0, le=1_000_000)] | Literal["as_learned"] = 0
    """inner runs on meta-validation that choose the learning rate of each of `ste`, `lsq` and `float`: a quarter, half,
    once, twice or four times optimizer.lr; as_learned: as many as finding the compared schedules took; 0: all have
    optimizer.lr"""

    @model_validator(mode="after")
    def _a_run_for_each_rate(self) -> Self:
        least = len(RATE_FACTORS)
        if self.tune_floors != "as_learned" and 0 < self.tune_floors < least:
            problem = f"{self.tune_floors} inner runs are too few for {least} learning rates"
            raise refusal("compare", Refused("tune_floors", self.tune_floors, problem, f"give 0, {least} or more"))
        return self
