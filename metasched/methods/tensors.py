"""The quantizers that all methods share: level sets and scales of a layer's weight and activation, and hardening."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw
from metasched.methods.base import State
from metasched.methods.config import MethodConfig
from metasched.quantizers.levels import LevelSet, level_set
from metasched.quantizers.scales import SMALLEST, Granularity, ScaleName, gradient_factor, scale_of
from metasched.quantizers.straight import straight_through

_SCALES = ("scale", "activation_scale")


def _factor(name: str) -> str:
    """Name in the state of the factor on the gradient of a learned scale."""
    return f"{name}_factor"


@dataclass(frozen=True)
class LayerQuantizer:
    """Level sets and scales of a layer.

    Attributes:
        levels: level set of the weight.
        activation_levels: level set of the activation; None: the activation stays in float.
        scale: how the weight's scale is computed. ``unit`` redraws the weights, each around a random threshold:
            theta + U(-r, r), r = 1 / sqrt(fan_in) (quantlib, ANA modules); the others keep the network's weights.
            ``learned`` is trained with them (quantizers/scales.py).
        granularity: one scale for the weight tensor, or one for each output channel.
        activation_scale: value of level 1 of activations (ANA's CIFAR-10 networks: 1, after batch normalization);
            ``learned``: one number a layer, which starts at the smallest squared error on the first batch.
    """

    levels: LevelSet
    activation_levels: LevelSet | None
    scale: ScaleName = "unit"
    granularity: Granularity = "tensor"
    activation_scale: float | Literal["learned"] = 1.0

    @property
    def quantizes(self) -> Quantizes:
        """``weight`` or ``weight+activation``."""
        return "weight" if self.activation_levels is None else "weight+activation"

    @property
    def fits_activations(self) -> bool:
        """Whether the scale of activations is learned, and so starts at a first batch."""
        return self.activation_levels is not None and self.activation_scale == "learned"

    def initialize(self, w: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, State, State]:
        """The initial weight, the trainable tensors and the state of a layer.

        Args:
            w: weight of the float network, [C_out, ...].
            draw: random numbers of this layer.

        Returns:
            the weight, redrawn if ``scale`` is unit; and ``{"scale": [C_out or 1, 1, ...]}``, as a trainable tensor if
            it is learned, else as state.
        """
        if self.scale == "unit":
            radius = 1 / math.sqrt(w[0].numel())
            thresholds = torch.tensor(self.levels.thresholds, dtype=w.dtype, device=w.device)
            which = (draw.uniform("threshold", w) * len(thresholds)).long().clamp_max(len(thresholds) - 1)
            w = thresholds[which] + radius * (2 * draw.uniform("radius", w) - 1)
        scale = scale_of(w, self.levels, self.scale, self.granularity)
        if self.scale != "learned":
            return w, {}, {"scale": scale}
        factor = gradient_factor(w.numel() // scale.numel(), self.levels)
        return w, {"scale": scale}, {_factor("scale"): scale.new_tensor(factor)}

    def fit_activation(self, x: torch.Tensor) -> tuple[State, State]:
        """The trainable tensors that start at a first input x [N, ...], and their state.

        They are ``{"activation_scale": 0-d}`` where that is learned, and nothing otherwise.
        """
        if not self.fits_activations:
            return {}, {}
        assert self.activation_levels is not None
        scale = scale_of(x.reshape(1, -1), self.activation_levels, "learned", "tensor").reshape(())
        factor = gradient_factor(x[0].numel(), self.activation_levels)
        return {"activation_scale": scale}, {_factor("activation_scale"): scale.new_tensor(factor)}

    def gradient_factors(self, state: State) -> State:
        """{name of a learned scale: the 0-d factor on its gradient}."""
        return {name: state[_factor(name)] for name in _SCALES if _factor(name) in state}

    def in_bounds(self, proposed: State) -> State:
        """Learned scales [...] after an optimizer's step, kept above 0; other tensors as they are."""
        return {name: t.clamp_min(SMALLEST) if name in _SCALES else t for name, t in proposed.items()}

    def activation_unit(self, state: State) -> torch.Tensor | float:
        """The scale of an activation: a number, or 0-d if it is learned."""
        return state["activation_scale"] if self.activation_scale == "learned" else self.activation_scale

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The weight [C_out, ...] on its nearest levels, with the derivative under uniform noise.

        ``surrogate`` is the half-width of that noise in quanta; ``state`` has the scale [C_out or 1, 1, ...].
        """
        return straight_through(w / state["scale"], self.levels, surrogate) * state["scale"]

    def harden_activation(self, x: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The activation [N, ...] on its nearest levels, with the derivative under uniform noise; see ``harden``."""
        assert self.activation_levels is not None, "the activation of this layer is not quantized"
        unit = self.activation_unit(state)
        if isinstance(unit, float) and unit == 1:
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
