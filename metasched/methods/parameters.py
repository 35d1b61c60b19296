"""The parameters of each method: its section of an experiment. Their rows are in the table of methods.

This file does not import torch, so that the command line can list parameters quickly.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Float, NonNegative, Positive, Refused, Repeats, Units, Word, refusal
from metasched.methods.config import MethodConfig
from metasched.methods.spec import METHODS, declared

DEFAULT_PARTS = "ana+inq"
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
    """Mixtures of float and hard."""

    name: Word = "blend"
    weight_gradient: Literal["both", "float"] = "both"
    """what gradients of a weight pass: its float part and the quantizer, or the float part alone (alpha-blending)"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TemperatureConfig(MethodConfig):
    """Softmax expectations over the levels: no own parameter."""

    name: Word = "temperature"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PARQConfig(MethodConfig):
    """Piecewise-affine maps: no own parameter."""

    name: Word = "parq"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WidthsConfig(MethodConfig):
    """Scheduled surrogate widths."""

    name: Word = "widths"
    window: _NoiseFamily = "triangular"
    """density that is the surrogate derivative; with uniform, its widths cannot be learned"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Partition(MethodConfig):
    """The order in which weights freeze."""

    partition: Literal["magnitude", "random", "relaxation"] = "magnitude"
    """which weights freeze first: the largest, a random order, or random partition relaxation"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class INQConfig(_Partition):
    """Incremental network quantization."""

    name: Word = "inq"
    live: Literal["float", "hard"] = "float"
    """what the forward pass sees of weights that are not frozen: float, as published, or their levels, as in STE"""

    @model_validator(mode="after")
    def _hard_where_scales_are_learned(self) -> Self:
        if self.scale == "learned" and self.live == "float":
            problem = "cannot be learned by inq while live weights are in float"
            raise refusal("method", Refused("scale", self.scale, problem, "set method.live to hard"))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RatesConfig(MethodConfig):
    """Learning rates and weight decays by layer: no own parameter."""

    name: Word = "rates"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OscillationConfig(MethodConfig):
    """Freezing of weights that oscillate."""

    name: Word = "oscillation"
    momentum: Annotated[Float, Field(gt=0, lt=1)] = 0.01
    """weight of the present step in the mean frequency of oscillations and in the mean level"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Sparse(MethodConfig):
    """A target of zeros."""

    sparsity: Annotated[Float, Field(gt=0, lt=1)] = 0.9
    """share of the weights that are zero at the end"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PruningConfig(_Sparse):
    """Gradual magnitude pruning."""

    name: Word = "pruning"
    budget: Literal["layer", "global"] = "layer"
    """whether sparsity is that of each layer, or of all together; global: a layer of small weights loses more, and
    the schedule is one for the network"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdaRoundConfig(MethodConfig):
    """Adaptive rounding: no own parameter."""

    name: Word = "adaround"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QuantNoiseConfig(MethodConfig):
    """Quantization noise."""

    name: Word = "quant_noise"
    noise_block: Units = 1
    """number of consecutive weights of an output channel that are quantized together"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RoundingConfig(MethodConfig):
    """Rounding with a randomness: no own parameter."""

    name: Word = "rounding"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BayesianBitsConfig(MethodConfig):
    """Gates for bits and channels: no own parameter."""

    name: Word = "bayesian_bits"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DPQConfig(MethodConfig):
    """Differentiable product quantization of embeddings."""

    name: Word = "dpq"
    groups: Units = 8
    """groups of the columns of a table, each with codes and a codebook of its own; they divide the columns"""
    codes: Annotated[Units, Field(ge=2)] = 16
    """entries of each codebook, a power of two"""
    lookup: Literal["sx", "vq"] = "sx"
    """sx: keys and values are trained apart, by a softmax of products; vq: the nearest key is the value"""
    selection: Literal["hard", "soft"] = "hard"
    """what the forward pass sees: one entry, or the mean of all under the softmax"""
    commitment: NonNegative = 0.0
    """of vq with hard selection: weight of the distance that pulls rows of the table to their entries"""

    @model_validator(mode="after")
    def _powers_of_two(self) -> Self:
        if self.codes & (self.codes - 1):
            fix = f"set it to {2 ** (self.codes.bit_length() - 1)} or {2 ** self.codes.bit_length()}"
            raise refusal("method", Refused("codes", self.codes, "is no power of two", fix))
        if self.commitment and (self.lookup, self.selection) != ("vq", "hard"):
            fix = "leave it out, or set method.lookup to vq and method.selection to hard"
            problem = f"has no effect, because method.lookup is {self.lookup} and method.selection {self.selection}"
            raise refusal("method", Refused("commitment", self.commitment, problem, fix))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ADMMConfig(_Sparse):
    """The alternating direction method of multipliers."""

    name: Word = "admm"
    constraint: Literal["prune", "quantize", "both"] = "both"
    """what weights are pulled to: a share of zeros, their levels, or both"""
    projection_every: Positive = 10
    """steps from one projection onto the constraint, and change of the multipliers, to the next"""

    @model_validator(mode="after")
    def _sparse_where_pruned(self) -> Self:
        default = type(self).__dataclass_fields__["sparsity"].default
        if self.name == "admm" and self.constraint == "quantize" and self.sparsity != default:
            problem = "has no effect, because method.constraint is quantize"
            raise refusal("method", Refused("sparsity", self.sparsity, problem, "leave it out, or set that to both"))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JointConfig(
    ANAConfig, BlendConfig, _Partition, WidthsConfig, OscillationConfig, PruningConfig, ADMMConfig, QuantNoiseConfig
):
    """Several methods at once: the parameters of all that can be its parts."""

    name: Word = "joint"
    of: Word = DEFAULT_PARTS
    """names of methods joined by +, such as widths+rates: at most one that says what the forward pass sees (ana,
    widths, temperature, parq, oscillation, rounding), and any of admm, blend, inq, pruning, quant_noise and
    rates, which change it in their order"""

    @property
    def live(self) -> Literal["float", "hard"]:
        """Of INQ as a part, which sees other parts' live weights: whether it stores the levels of frozen ones."""
        return "hard" if self.scale == "learned" else "float"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names in ``of``."""
        return tuple(self.of.replace(" ", "").split("+"))

    @model_validator(mode="after")
    def _parts_exist(self) -> Self:
        known = [name for name, row in METHODS.items() if row.part]
        for part in self.parts:
            if part not in known or self.parts.count(part) > 1:
                problem = "is named twice" if part in known else "is no method that can be a part"
                fix = f"join some of {', '.join(known)} by +"
                raise refusal("method", Refused("of", self.of, f"{part!r} {problem}", fix))
        read = {field for part in self.parts for field in METHODS[part].parameters}
        for field in sorted(type(self).__dataclass_fields__.keys() - read - {"of"}):
            owners = declared(field).keys() - {self.name}
            if owners and getattr(self, field) != type(self).__dataclass_fields__[field].default:
                problem = f"has no effect, because method.of is {self.of}"
                fix = f"leave it out; it is a parameter of {' and '.join(sorted(owners))}"
                raise refusal("method", Refused(field, getattr(self, field), problem, fix))
        return self


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
