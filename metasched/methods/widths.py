"""Scheduled surrogate widths: STE whose derivative has a width for weights and one for activations, in each layer.

    forward    w_seen = s Q(w / s),  x_seen = a Q(x / a)                  hard from the first step to the last
    backward   dQ/dz := sum_k d_k f((z - theta_k) / h) / h                h: ``weight_width`` or ``activation_width``

With the uniform density and both widths at half a quantum throughout this is ``ste``, bit for bit: the floor is a
schedule of this method. With learned scales it is LSQ with another derivative.

A wide surrogate lets gradients through weights and activations that are far from a threshold; a narrow one is close to
the quantizer. Source of the derivative: see quantizers/surrogate.py. That weights and activations have widths of their
own, by layer and time, is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.parameters import WidthsConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer
from metasched.quantizers.surrogate import hard_with_width

LOW, HIGH = 0.1, 4.0
STE_WIDTH = 0.5  # half-width in quanta of the uniform density that is the straight-through estimator
WIDE = 1.0  # the half-width that means no schedule for densities that fall towards their edges
_UNIT = "quantum, half-width of the surrogate derivative"


@dataclass(frozen=True)
class Widths(Method):
    """Scheduled surrogate widths; see the module's docstring.

    Attributes:
        quantizer: level sets and scales.
        window: family of densities, a key of NOISE_FAMILIES. A hypergradient in the width needs a continuous one: that
            of ``uniform`` is 0 but at its edges.
    """

    quantizer: LayerQuantizer
    window: str = "triangular"

    @property
    def controls(self) -> tuple[Control, ...]:
        none = STE_WIDTH if self.window == "uniform" else WIDE
        gradient = "none" if self.window == "uniform" else "surrogate"
        names = ("weight_width", "activation_width") if self.quantizer.activation_levels else ("weight_width",)
        return tuple(
            Control(name, LOW, HIGH, _UNIT, "free", end=None, gradient=gradient, scale="log", none_value=none)
            for name in names
        )

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        z = w / state["scale"]
        return hard_with_width(z, self.quantizer.levels, controls["weight_width"], self.window) * state["scale"]

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        width = controls["activation_width"]
        return self.quantizer.scaled(x, state, lambda z, levels: hard_with_width(z, levels, width, self.window))


def build(config: WidthsConfig) -> Widths:
    """The method of a configuration."""
    return Widths(layer_quantizer(config), config.window)
