"""The parameters of each method of the package, as the section ``method`` of an experiment has them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Float, Refused, Repeats, Word, refusal
from metasched.methods.config import MethodConfig

_NoiseFamily = Literal["uniform", "triangular", "normal", "logistic"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FloatConfig(MethodConfig):
    """No parameter of its own; those of all methods are ignored."""

    name: Word = "float"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class STEConfig(MethodConfig):
    """No parameter of its own."""

    name: Word = "ste"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ANAConfig(MethodConfig):
    """Additive noise annealing."""

    name: Word = "ana"
    noise: _NoiseFamily = "triangular"
    """noise family"""
    forward: Literal["expectation", "mode", "random"] = "mode"
    """what the forward pass sees of the noise"""
    backward: Literal["noise", "fixed"] = "noise"
    """derivative of the noise's own width, or of a fixed half-width of 0.5 quanta (ANA's 2019 form)"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class INQConfig(MethodConfig):
    """Incremental network quantization."""

    name: Word = "inq"
    partition: Literal["magnitude", "random", "relaxation"] = "magnitude"
    """which weights freeze first: largest, random, or random partition relaxation"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JointConfig(ANAConfig, INQConfig):
    """The parameters of both."""

    name: Word = "joint"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GXNORConfig(MethodConfig):
    """Discrete state transition."""

    name: Word = "gxnor"
    noise: _NoiseFamily = "triangular"
    """window of the activations' derivative"""
    half_width: Annotated[Float, Field(gt=0)] = 0.5
    """half-width of the window of the activations' derivative, in quanta"""
    steepness: Annotated[Float, Field(gt=0)] = 3.0
    """m, of the chance tanh(m |x|) that a step of x quanta below 1 moves its weight"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MetropolisConfig(GXNORConfig):
    """Metropolis transitions."""

    name: Word = "metropolis"
    uphill: Annotated[Float, Field(ge=0, le=0.5)] = 0.5
    """share of jumps that are proposed against the optimizer's step"""
    cooling: Literal["schedule", "adaptive"] = "schedule"
    """temperature as scheduled, or times a factor for each layer that follows what is accepted"""
    energy: Literal["first_order", "batch"] = "first_order"
    """change of the loss by a jump: to first order, or evaluated on the batch for all jumps of a block"""
    blocks: Repeats = 1
    """parts of a layer that are accepted or rejected by themselves, a forward pass each (energy batch)"""

    @model_validator(mode="after")
    def _blocks_count(self) -> Self:
        if self.blocks > 1 and self.energy != "batch":
            problem = "has no effect, because method.energy is first_order"
            raise refusal("method", Refused("blocks", self.blocks, problem, "leave it out; it is for batch"))
        return self
