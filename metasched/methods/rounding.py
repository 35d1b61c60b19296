"""Stochastic rounding that turns into rounding to the nearest level.

    w_seen = s R(w / s),      x_seen = a R(x / a)

R rounds each value to one of its two neighbouring levels (quantizers/rounding.py): at random, without a bias, where the
randomness is 1; to the nearest where it is 0; and in between to the nearest with a probability in proportion.
``weight_randomness`` and ``activation_randomness`` are the controls. At 0 the method is ``ste``, bit for bit: that is
no schedule. Deployed are the nearest levels.

The derivatives are those of the mean of R, which is the forward pass of ``blend``: s (clip(z) - Q(z)) in the
randomness, with z = w / s. ANA with uniform noise of half-width kappa / 2 and ``forward: random`` also goes from
stochastic rounding to the nearest level, where levels are evenly spaced: there noise gets narrower, here rarer.

Source: stochastic rounding, Gupta et al., ICML 2015, arXiv 1502.02551; of weights with binary levels it is
BinaryConnect, Courbariaux et al., NeurIPS 2015, arXiv 1511.00363. We differ: both round at random until the end of
training; here that is annealed, for weights and activations apart, and by layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.parameters import RoundingConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer
from metasched.quantizers.rounding import rounded


def _randomness(of: str) -> Control:
    unit = "probability that a value is rounded at random"
    return Control(f"{of}_randomness", 0.0, 1.0, unit, "nonincreasing", end=0.0, gradient="surrogate", none_value=0.0)


WEIGHT_RANDOMNESS = _randomness("weight")
ACTIVATION_RANDOMNESS = _randomness("activation")


@dataclass(frozen=True)
class Rounding(Method):
    """Rounding with a randomness; see the module's docstring."""

    quantizer: LayerQuantizer

    @property
    def controls(self) -> tuple[Control, ...]:
        both = (WEIGHT_RANDOMNESS, ACTIVATION_RANDOMNESS)
        return both if self.quantizer.activation_levels else both[:1]

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        uniform, scale = draw.uniform("rounding_weight", w), state["scale"]
        return rounded(w / scale, self.quantizer.levels, controls["weight_randomness"], uniform) * scale

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        uniform, randomness = draw.uniform("rounding_activation", x), controls["activation_randomness"]
        return self.quantizer.scaled(x, state, lambda z, levels: rounded(z, levels, randomness, uniform))


def build(config: RoundingConfig) -> Rounding:
    """The method of a configuration."""
    return Rounding(layer_quantizer(config))
