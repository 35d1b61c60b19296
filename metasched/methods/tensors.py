"""The quantizers that all methods share: level sets and scales of a layer's weight and activation, and hardening."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw
from metasched.methods.base import State
from metasched.methods.config import MethodConfig
from metasched.quantizers.levels import LevelSet, level_set
from metasched.quantizers.scales import Granularity, ScaleName, scale_of
from metasched.quantizers.stair import straight_through


@dataclass(frozen=True)
class LayerQuantizer:
    """Level sets and scales of a layer.

    Attributes:
        levels: level set of the weight.
        activation_levels: level set of the activation; None: the activation stays in float.
        scale: how the weight's scale is computed. ``unit`` redraws the weights, each around a random threshold:
            theta + U(-r, r), r = 1 / sqrt(fan_in) (quantlib, ANA modules); the others keep the network's weights.
        granularity: one scale for the weight tensor, or one for each output channel.
        activation_scale: value of level 1 of activations (ANA's CIFAR-10 networks: 1, after batch normalization).
    """

    levels: LevelSet
    activation_levels: LevelSet | None
    scale: ScaleName = "unit"
    granularity: Granularity = "tensor"
    activation_scale: float = 1.0

    @property
    def quantizes(self) -> Quantizes:
        """``weight`` or ``weight+activation``."""
        return "weight" if self.activation_levels is None else "weight+activation"

    def initialize(self, w: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, State]:
        """The initial weight [C_out, ...], redrawn if ``scale`` is unit, and ``{"scale": [C_out or 1, 1, ...]}``."""
        if self.scale == "unit":
            radius = 1 / math.sqrt(w[0].numel())
            thresholds = torch.tensor(self.levels.thresholds, dtype=w.dtype, device=w.device)
            which = (draw.uniform("threshold", w) * len(thresholds)).long().clamp_max(len(thresholds) - 1)
            w = thresholds[which] + radius * (2 * draw.uniform("radius", w) - 1)
        return w, {"scale": scale_of(w, self.levels, self.scale, self.granularity)}

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The weight [C_out, ...] on its nearest levels, with the derivative under uniform noise.

        ``surrogate`` is the half-width of that noise in quanta; ``state`` has the scale [C_out or 1, 1, ...].
        """
        return straight_through(w / state["scale"], self.levels, surrogate) * state["scale"]

    def harden_activation(self, x: torch.Tensor, surrogate: float) -> torch.Tensor:
        """The activation [...] on its nearest levels, with the derivative under uniform noise; see ``harden``."""
        assert self.activation_levels is not None, "the activation of this layer is not quantized"
        unit = self.activation_scale
        if unit == 1:
            return straight_through(x, self.activation_levels, surrogate)
        return straight_through(x / unit, self.activation_levels, surrogate) * unit


def layer_quantizer(config: MethodConfig) -> LayerQuantizer:
    """The level sets and scales of a configuration.

    Raises:
        MetaschedError: a level set does not exist.
    """
    activations = config.activation_levels
    return LayerQuantizer(
        level_set(config.levels, "method.levels"),
        None if activations is None else level_set(activations, "method.activation_levels"),
        config.scale,
        config.granularity,
        config.activation_scale,
    )
