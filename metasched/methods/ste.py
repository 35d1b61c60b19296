"""STE: hard quantization from the first step to the last, with a straight-through derivative. The floor.

Forward: the hard quantizer. Backward: the density of uniform noise of half-width 1/2 quantum, which for ternary levels
is the derivative of clip(x, -1, 1) (Bengio et al., 2013, arXiv 1308.3432; hardtanh variant as in Hubara et al., 2016,
arXiv 1602.02830). It has no controls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw
from metasched.methods.base import Control, State, Values
from metasched.methods.tensors import LayerQuantizer

_HALF_QUANTUM = 0.5


@dataclass(frozen=True)
class STE:
    """Straight-through estimator; see the module's docstring."""

    quantizer: LayerQuantizer

    @property
    def controls(self) -> tuple[Control, ...]:
        return ()

    @property
    def quantizes(self) -> Quantizes:
        return self.quantizer.quantizes

    @property
    def bits(self) -> float:
        return self.quantizer.levels.bits

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State]:
        return self.quantizer.initialize(w, draw)

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        return state

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.quantizer.harden(w, state, _HALF_QUANTUM)

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.quantizer.harden_activation(x, _HALF_QUANTUM)

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor | None:
        return None

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        return proposed, state

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return self.quantizer.harden(w, state, surrogate)

    def harden_activation(self, x: torch.Tensor, surrogate: float) -> torch.Tensor:
        return self.quantizer.harden_activation(x, surrogate)

    def relaxed(self, width: float) -> STE:
        return self
