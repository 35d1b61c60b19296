"""The methods of the package: for each the parameters of its section of an experiment, and its row.

This file does not import torch, so that the command line can list methods and parameters quickly.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Float, Refused, Repeats, Word, refusal
from metasched.core.lazy import Lazy
from metasched.methods.config import MethodConfig
from metasched.methods.spec import MethodSpec

SCALES = ("scale", "activation_scale")
ONE_NOISE = {"noise_scale": ("weight_noise", "activation_noise")}  # until weights and activations had one each
_NoiseFamily = Literal["uniform", "triangular", "normal", "logistic"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FloatConfig(MethodConfig):
    """The float network: no own parameter, and the shared ones have no effect."""

    name: Word = "float"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class STEConfig(MethodConfig):
    """The straight-through estimator: no own parameter."""

    name: Word = "ste"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ANAConfig(MethodConfig):
    """Additive noise annealing."""

    name: Word = "ana"
    noise: _NoiseFamily = "triangular"
    """noise family"""
    forward: Literal["expectation", "mode", "random"] = "mode"
    """output of the noisy quantizer in the forward pass"""
    backward: Literal["noise", "fixed"] = "noise"
    """width of the noise in the derivative: that of the forward pass, or a fixed half-width of 0.5 quanta (ANA 2019)"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BlendConfig(MethodConfig):
    """Mixtures of float and hard: no own parameter."""

    name: Word = "blend"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WidthsConfig(MethodConfig):
    """Scheduled surrogate widths."""

    name: Word = "widths"
    window: _NoiseFamily = "triangular"
    """density that is the surrogate derivative; with uniform, its widths cannot be learned"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class INQConfig(MethodConfig):
    """Incremental network quantization."""

    name: Word = "inq"
    partition: Literal["magnitude", "random", "relaxation"] = "magnitude"
    """which weights freeze first: the largest, a random order, or random partition relaxation"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JointConfig(ANAConfig, INQConfig):
    """Noise annealing and freezing at once: the parameters of ANA and INQ."""

    name: Word = "joint"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GXNORConfig(MethodConfig):
    """Discrete state transition."""

    name: Word = "gxnor"
    noise: _NoiseFamily = "triangular"
    """noise family whose density is the derivative of activations"""
    half_width: Annotated[Float, Field(gt=0)] = 0.5
    """half-width of the derivative of activations around each threshold, in quanta"""
    steepness: Annotated[Float, Field(gt=0)] = 3.0
    """m: an update of |x| < 1 quanta moves its weight with probability tanh(m |x|)"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MetropolisConfig(GXNORConfig):
    """Metropolis transitions."""

    name: Word = "metropolis"
    uphill: Annotated[Float, Field(ge=0, le=0.5)] = 0.5
    """share of jumps that are proposed against the optimizer's update"""
    cooling: Literal["schedule", "adaptive"] = "schedule"
    """temperature as scheduled, or times a factor for each layer that adapts to the acceptance rate"""
    energy: Literal["first_order", "batch"] = "first_order"
    """change of the loss by a jump: to first order, or evaluated on the batch for a block of jumps"""
    blocks: Repeats = 1
    """parts of a layer that are accepted or rejected separately, with one forward pass each (energy batch)"""

    @model_validator(mode="after")
    def _blocks_count(self) -> Self:
        if self.blocks > 1 and self.energy != "batch":
            problem = "has no effect, because method.energy is first_order"
            raise refusal(
                "method", Refused("blocks", self.blocks, problem, "leave it out, or set method.energy to batch")
            )
        return self


def _soft_noise(config: ANAConfig) -> bool:
    return config.forward == "expectation" and config.backward == "noise"


def _float_activations(config: INQConfig) -> bool:
    return config.activation_levels is None


ROWS = (
    MethodSpec(
        FloatConfig,
        "no quantization",
        Lazy("metasched.methods.float_network:build"),
        Lazy("metasched.schedules.table:float_network"),
        lambda config: True,
        learns=(),
    ),
    MethodSpec(
        STEConfig,
        "straight-through estimator: no schedule",
        Lazy("metasched.methods.ste:build"),
        Lazy("metasched.schedules.table:ste"),
        learns=SCALES,
    ),
    MethodSpec(
        WidthsConfig,
        "straight-through estimator with scheduled surrogate widths",
        Lazy("metasched.methods.widths:build"),
        Lazy("metasched.schedules.widths:widths"),
        learns=SCALES,
    ),
    MethodSpec(
        ANAConfig,
        "noise annealing",
        Lazy("metasched.methods.ana:build"),
        Lazy("metasched.schedules.published:ana"),
        _soft_noise,
        learns=SCALES,
        former=ONE_NOISE,
    ),
    MethodSpec(
        BlendConfig,
        "from float to hard by a blend of both",
        Lazy("metasched.methods.blend:build"),
        Lazy("metasched.schedules.blending:blend"),
        learns=SCALES,
    ),
    MethodSpec(
        INQConfig,
        "incremental freezing",
        Lazy("metasched.methods.inq:build"),
        Lazy("metasched.schedules.published:inq"),
        _float_activations,
    ),
    MethodSpec(
        JointConfig,
        "noise annealing and freezing at once",
        Lazy("metasched.methods.joint:build"),
        Lazy("metasched.schedules.table:joint"),
        _soft_noise,
        former=ONE_NOISE,
    ),
    MethodSpec(
        GXNORConfig,
        "discrete state transition, without float weights",
        Lazy("metasched.methods.gxnor:build"),
        Lazy("metasched.schedules.cooling:gxnor"),
        activation_parameters=("noise", "half_width"),
    ),
    MethodSpec(
        MetropolisConfig,
        "Metropolis transitions, without float weights",
        Lazy("metasched.methods.batch_metropolis:build"),
        Lazy("metasched.schedules.cooling:metropolis"),
        activation_parameters=("noise", "half_width"),
    ),
)
