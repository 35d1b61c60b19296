"""Blend: float at first, hard at last; two controls say how hard weights and activations are, apart.

    w_seen = (1 - b) w + b Q(w),        x_seen = (1 - a) clip(x) + a Q(x),        b, a in [0, 1]

Q is the quantizer of STE with its straight-through derivative Q', clip bounds x by the outermost levels times the scale
of activations. Its slope is 1 between them, and Q is its staircase; for ternary levels and scale 1 it is hardtanh.

    d w_seen / d b = Q(w) - w,        d w_seen / d w = (1 - b) + b Q'(w)

At 1 the method is STE, bit for bit. At 0 weights are float and activations are clipped. Learned scales are those of
LSQ, times the blend; that of activations also learns where it clips (quantizers/clip.py has the form of PACT).

Source: alpha-blending, Liu and Mattina, 2019, arXiv 1903.01061, for weights; the warm-up of Hugging Face's 1.58-bit
fine-tuning (blog, September 2024) for both. We differ:

- Their derivative in w is 1 - b (alpha-blending) or 1 (warm-up); ours is that of the sum of both parts. With
  ``method.weight_gradient: float`` it is 1 - b: gradients pass w alone, and weights stand still at b = 1.
- Alpha-blending has one share for all layers; the warm-up has one for all layers, weights and activations. Ours are
  apart.
- They blend with x itself. Here the site has replaced the activation function, so that x alone has no nonlinearity:
  the float part is clip(x), which a quantized activation is too, up to its steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, State, Values
from metasched.methods.modifier import Modifier
from metasched.methods.parameters import BlendConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer

WEIGHT_BLEND = Control(
    "weight_blend", 0.0, 1.0, "share of the quantized weight", "nondecreasing", end=1.0, none_value=1.0
)
ACTIVATION_BLEND = Control(
    "activation_blend", 0.0, 1.0, "share of the quantized activation", "nondecreasing", end=1.0, none_value=1.0
)


@dataclass(frozen=True)
class Blend(Modifier):
    """Mixture of float and hard; see the module's docstring.

    Attributes:
        quantizer: level sets and scales.
        weight_gradient: ``both``: gradients pass w and Q(w); ``float``: w alone, as in alpha-blending.
    """

    quantizer: LayerQuantizer
    weight_gradient: Literal["both", "float"] = "both"

    @property
    def controls(self) -> tuple[Control, ...]:
        return (WEIGHT_BLEND, ACTIVATION_BLEND)

    def seen_weight(
        self, seen: torch.Tensor, w: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> torch.Tensor:
        seen = seen.detach() if self.weight_gradient == "float" else seen
        return torch.lerp(w, seen, controls["weight_blend"].to(w.dtype))  # lerp is exact at 0 and at 1

    def seen_activation(
        self, seen: torch.Tensor, x: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> torch.Tensor:
        return torch.lerp(self.quantizer.clipped(x, state), seen, controls["activation_blend"].to(x.dtype))


def build(config: BlendConfig) -> Blend:
    """The method of a configuration."""
    return Blend(layer_quantizer(config), config.weight_gradient)
