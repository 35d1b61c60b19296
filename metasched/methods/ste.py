"""STE: hard quantization from the first step to the last, with a straight-through derivative; the floor of comparisons.

Forward: the hard quantizer. Backward: the density of uniform noise of half-width 1/2 quantum, which for ternary levels
is the derivative of clip(x, -1, 1) (Bengio et al., 2013, arXiv 1308.3432; hardtanh variant as in Hubara et al., 2016,
arXiv 1602.02830). The method has no control.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.parameters import STEConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer

_HALF_QUANTUM = 0.5


@dataclass(frozen=True)
class STE(Method):
    """Straight-through estimator; see the module's docstring."""

    quantizer: LayerQuantizer

    @property
    def controls(self) -> tuple[Control, ...]:
        return ()

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.quantizer.harden(w, state, _HALF_QUANTUM)

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.quantizer.harden_activation(x, state, _HALF_QUANTUM)


def build(config: STEConfig) -> STE:
    """The method of a configuration."""
    return STE(layer_quantizer(config))
