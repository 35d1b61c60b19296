"""What every method here shares: the level sets and scales of a layer's two tensors, and how they are hardened."""

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
        levels: of the weight.
        activation_levels: of the activation; None leaves it in float.
        scale: how the weight's scale is chosen. ``unit`` draws the weights anew, each around a random threshold:
            theta + U(-r, r), r = 1 / sqrt(fan_in) (quantlib, ANA modules); the others keep the network's own.
        granularity: one scale for the weight tensor or one for each output channel.
        activation_scale: size of an activation quantum (ANA's CIFAR-10 networks: 1, after batch normalization).
    """

    levels: LevelSet
    activation_levels: LevelSet | None
    scale: ScaleName = "unit"
    granularity: Granularity = "tensor"
    activation_scale: float = 1.0

    @property
    def quantizes(self) -> Quantizes:
        """``weight`` alone or both tensors."""
        return "weight" if self.activation_levels is None else "weight+activation"

    def initialize(self, w: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, State]:
        """Initial weight and ``{"scale": [C_out or 1, 1, ...]}``."""
        if self.scale == "unit":
            radius = 1 / math.sqrt(w[0].numel())
            thresholds = torch.tensor(self.levels.thresholds, dtype=w.dtype, device=w.device)
            which = (draw.uniform("threshold", w) * len(thresholds)).long().clamp_max(len(thresholds) - 1)
            w = thresholds[which] + radius * (2 * draw.uniform("radius", w) - 1)
        return w, {"scale": scale_of(w, self.levels, self.scale, self.granularity)}

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The weight on its levels; derivative of uniform noise of half-width ``surrogate``."""
        return straight_through(w / state["scale"], self.levels, surrogate) * state["scale"]

    def harden_activation(self, x: torch.Tensor, surrogate: float) -> torch.Tensor:
        """The activation on its levels; derivative of uniform noise of half-width ``surrogate``."""
        assert self.activation_levels is not None, "this layer's activation stays in float"
        unit = self.activation_scale
        if unit == 1:
            return straight_through(x, self.activation_levels, surrogate)
        return straight_through(x / unit, self.activation_levels, surrogate) * unit


def layer_quantizer(config: MethodConfig) -> LayerQuantizer:
    """The level sets and scales that a configuration describes.

    Raises:
        MetaschedError: a level set that does not exist.
    """
    activations = config.activation_levels
    return LayerQuantizer(
        level_set(config.levels, "method.levels"),
        None if activations is None else level_set(activations, "method.activation_levels"),
        config.scale,
        config.granularity,
        config.activation_scale,
    )
