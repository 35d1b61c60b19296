"""Temperature: softmax expectations over the levels, cooled until they are hard.

    w_seen = (1 - b) w + b s E_tau(w / s),      x_seen = a E_sigma(x / a)

E_tau is the soft quantizer (quantizers/softmax.py), tau is ``weight_temperature``, sigma ``activation_temperature`` and
b ``weight_blend``. For tau > 0 all derivatives are true ones. At tau = 0 the quantizer is hard with STE's derivative:
with both temperatures at 0 and b = 1 the method is STE, bit for bit. Between the two lies a gap: the true derivative of
a cold softmax is almost 0 except close to a threshold.

Source: Hestia, arXiv 2601.20745; hestia2026/Hestia. Its blend is called pressure there. We differ:

- Each layer has its own temperature. The factor exp(-alpha sigmoid(kappa z)) for each tensor, with z the standardised
  logarithm of the trace of its Hessian, is a part of the schedule ``temperature_hestia_hessian``
  (schedules/tempering.py), because it is a constant of the layer that is measured before training.
- The scale is that of ``method.scale``; theirs is mean|w| at each step.
- Activations have a temperature too; theirs are not quantized.
- At temperature 0 the derivative is that of STE's window; theirs is 1 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.blend import WEIGHT_BLEND
from metasched.methods.parameters import TemperatureConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer
from metasched.quantizers.softmax import soft

# the learning floor: 0.2 is as wide as noise of half-width 0.37, where hypergradients do not explode yet (ana.py)
WEIGHT_TEMPERATURE, ACTIVATION_TEMPERATURE = (
    Control(name, 0.0, 2.0, "square of a quantum", "nonincreasing", end=0.0, none_value=0.0, learning_floor=0.2)
    for name in ("weight_temperature", "activation_temperature")
)


@dataclass(frozen=True)
class Temperature(Method):
    """Softmax expectations over the levels; see the module's docstring."""

    quantizer: LayerQuantizer

    @property
    def controls(self) -> tuple[Control, ...]:
        own = (WEIGHT_TEMPERATURE, WEIGHT_BLEND)
        return own if self.quantizer.activation_levels is None else (*own, ACTIVATION_TEMPERATURE)

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        level = soft(w / state["scale"], self.quantizer.levels, controls["weight_temperature"]) * state["scale"]
        return torch.lerp(w, level, controls["weight_blend"].to(w.dtype))  # lerp is exact at 0 and at 1

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        temperature = controls["activation_temperature"]
        return self.quantizer.scaled(x, state, lambda z, levels: soft(z, levels, temperature))


def build(config: TemperatureConfig) -> Temperature:
    """The method of a configuration."""
    return Temperature(layer_quantizer(config))
