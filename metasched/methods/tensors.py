"""The quantizers that all methods share: level sets and scales of a layer's weight and activation, and hardening."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw
from metasched.methods.base import State
from metasched.methods.config import MethodConfig
from metasched.quantizers.clip import with_clip_gradient
from metasched.quantizers.levels import LevelSet, level_set
from metasched.quantizers.scales import SMALLEST, Granularity, ScaleName, gradient_factor, scale_of
from metasched.quantizers.straight import straight_through

_SCALES = ("scale", "activation_scale")
_CLIP = "activation_clip"
LEARNED = ("learned", "clip")  # what a field of a scale may be where the scale is trained


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
            ``learned``: one number a layer, which starts at the smallest squared error on the first batch; ``clip``:
            the value of the highest level is learned instead, with the gradient of PACT (quantizers/clip.py).
    """

    levels: LevelSet
    activation_levels: LevelSet | None
    scale: ScaleName = "unit"
    granularity: Granularity = "tensor"
    activation_scale: float | Literal["learned", "clip"] = 1.0

    @property
    def quantizes(self) -> Quantizes:
        """``weight`` or ``weight+activation``."""
        return "weight" if self.activation_levels is None else "weight+activation"

    @property
    def fits_activations(self) -> bool:
        """Whether the scale of activations is learned, and so starts at a first batch."""
        return self.activation_levels is not None and self.activation_scale in LEARNED

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

        They are ``{"activation_scale": 0-d}`` where that is learned, ``{"activation_clip": 0-d}`` where the clip is,
        and nothing otherwise.
        """
        if not self.fits_activations:
            return {}, {}
        assert self.activation_levels is not None
        scale = scale_of(x.reshape(1, -1), self.activation_levels, "learned", "tensor").reshape(())
        if self.activation_scale == "clip":
            return {_CLIP: scale * self.activation_levels.levels[-1]}, {}
        factor = gradient_factor(x[0].numel(), self.activation_levels)
        return {"activation_scale": scale}, {_factor("activation_scale"): scale.new_tensor(factor)}

    def gradient_factors(self, state: State) -> State:
        """{name of a learned scale: the 0-d factor on its gradient}."""
        return {name: state[_factor(name)] for name in _SCALES if _factor(name) in state}

    def in_bounds(self, proposed: State) -> State:
        """Learned scales and clips [...] after an optimizer's step, kept above 0; other tensors as they are."""
        kept = (*_SCALES, _CLIP)
        return {name: t.clamp_min(SMALLEST) if name in kept else t for name, t in proposed.items()}

    def activation_unit(self, state: State) -> torch.Tensor | float:
        """The value of level 1 of an activation in the hard network: a number, or 0-d if it is learned."""
        if self.activation_scale == "clip":
            assert self.activation_levels is not None, "the activation of this layer is not quantized"
            return state[_CLIP].detach() / self.activation_levels.levels[-1]
        return state["activation_scale"] if self.activation_scale == "learned" else float(self.activation_scale)

    def scaled(
        self, x: torch.Tensor, state: State, quantized: Callable[[torch.Tensor, LevelSet], torch.Tensor]
    ) -> torch.Tensor:
        """What a quantizer makes of an activation at its scale: a f(x / a), with the scale a.

        Args:
            x: [N, ...], the activation.
            state: of the layer, with its trainable tensors; a learned scale or clip is 0-d.
            quantized: f, from values in units of the scale and the level set to quantized values in these units.

        Returns:
            shape and dtype of x; the derivative in a learned clip is that of PACT.
        """
        levels, unit = self.activation_levels, self.activation_unit(state)
        assert levels is not None, "the activation of this layer is not quantized"
        if isinstance(unit, float) and unit == 1:
            return quantized(x, levels)
        found = quantized(x / unit, levels) * unit
        return with_clip_gradient(found, x, state[_CLIP], levels) if self.activation_scale == "clip" else found

    def clipped(self, x: torch.Tensor, state: State) -> torch.Tensor:
        """The activation x [N, ...], bounded by the outermost levels times its scale; ``state`` as in ``scaled``."""
        return self.scaled(x, state, lambda z, levels: z.clamp(levels.levels[0], levels.levels[-1]))

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The weight [C_out, ...] on its nearest levels, with the derivative under uniform noise.

        ``surrogate`` is the half-width of that noise in quanta; ``state`` has the scale [C_out or 1, 1, ...].
        """
        return straight_through(w / state["scale"], self.levels, surrogate) * state["scale"]

    def harden_activation(self, x: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The activation [N, ...] on its nearest levels, with the derivative under uniform noise; see ``harden``."""
        return self.scaled(x, state, lambda z, levels: straight_through(z, levels, surrogate))


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
