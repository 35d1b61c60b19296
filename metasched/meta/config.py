"""The sections ``meta`` and ``online`` of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from metasched.core.field_types import (
    STRICT,
    Bytes,
    Float,
    Int,
    NonNegative,
    Positive,
    Refused,
    Repeats,
    RowOf,
    Word,
    refusal,
)
from metasched.estimators.table import ESTIMATORS
from metasched.training.optimizers.config import RATE_FACTORS


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MetaConfig:
    """The outer loop."""

    steps: Annotated[Int, Field(ge=0, le=10**9)] = 40
    """outer updates"""
    runs: Repeats = 4
    """inner runs averaged in an outer step; antithetic pairs of them for evolution strategies"""
    lr: Annotated[Float, Field(gt=0)] = 0.1
    """Adam step size of the schedule network: about the change of a log-correction in an outer step"""
    estimator: Annotated[Word, RowOf(ESTIMATORS)] = "sweep"
    """how hypergradients are computed"""
    memory: Bytes | None = None
    """sweep, weighted, guided, mixed, auto: bytes, or a text such as 2 GiB, that an inner run may take (default:
    little; more: faster)"""
    sigma: Annotated[Float, Field(gt=0)] = 0.5
    """es, guided, pes, nres, mixed, auto: standard deviation of the perturbations, about that of a log-correction"""
    window: Positive | None = None
    """pes, nres: steps of a window (default: a tenth of the run)"""
    relaxation: NonNegative = 0.3
    """width of the relaxed freeze mask while learning (share of the weights); 0 is the exact partition"""
    objective: Literal["hardened", "relaxed", "trajectory"] = "hardened"
    """validation loss of the hardened network, of the network as trained, or the hardened mean over the last fifth"""
    surrogate: Annotated[Float, Field(gt=0)] = 0.5
    """half-width of the surrogate derivative of the hardened network, in quanta"""
    clip: Annotated[Float, Field(gt=0)] = 1.0
    """largest norm of one inner run's hypergradient"""
    noise_floor: NonNegative | None = None
    """lowest noise while learning, in quanta (default: as the method's control declares, 0.35); 0 switches it off"""
    tune_lr: Annotated[Int, Field(ge=0, le=1_000_000)] = 0
    """inner runs on meta-validation that choose the learning rate at the start, before learning: a quarter, half, once,
    twice or four times optimizer.lr; 0: optimizer.lr"""
    search_steps: Annotated[Int, Field(ge=0, le=10**12)] = 0
    """inner steps of a search before learning, which then starts at what it found; section `tune` says how; 0: none"""
    search_numbers: Positive = 8
    """schedule.kind network: at most so many smooth directions are searched (at least one for each learned control)"""
    select_runs: Repeats = 4
    """paired inner runs for each hand-coded schedule when `schedule.start` is best"""
    confirm_runs: Annotated[Int, Field(ge=0, le=10_000)] = 8
    """fresh paired runs of what was learned and of its start, the better of which is exported; 0: export unconfirmed"""

    @model_validator(mode="after")
    def _a_run_for_each_rate(self) -> Self:
        if 0 < self.tune_lr < (least := len(RATE_FACTORS)):
            problem = f"{self.tune_lr} inner runs are too few for {least} learning rates"
            raise refusal("meta", Refused("tune_lr", self.tune_lr, problem, f"give 0, {least} or more"))
        return self

    @model_validator(mode="after")
    def _an_interval_needs_two(self) -> Self:
        if self.confirm_runs == 1:
            problem = "is 1, and one run has no interval"
            raise refusal("meta", Refused("confirm_runs", 1, problem, "set it to 2 or more, or to 0 for none"))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OnlineConfig:
    """Learning while training once: `metasched online`."""

    every: Positive = 10
    """steps that are played from one look-ahead to the next"""
    window: Positive = 5
    """steps that a look-ahead trains ahead and differentiates"""
    lr: Annotated[Float, Field(gt=0)] = 0.1
    """Adam step size of the schedule network"""
    held_out: Positive | None = None
    """examples of the meta-validation part that judge a look-ahead (default: as many as task.batch)"""
