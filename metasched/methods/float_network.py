"""No quantization: the float network, trained as it is. The ceiling of a comparison.

    w_seen = w

Weights, activations and initial values are the float network's own. It has no controls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw
from metasched.methods.base import Control, State, Values

_BITS = 32.0  # of a float32 weight


@dataclass(frozen=True)
class FloatNetwork:
    """The float network; see the module's docstring."""

    @property
    def controls(self) -> tuple[Control, ...]:
        return ()

    @property
    def quantizes(self) -> Quantizes:
        return "weight"  # so that every activation stays the module's own

    @property
    def bits(self) -> float:
        return _BITS

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State]:
        return w, {}

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        return state

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return w

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        raise AssertionError("activations of the float network are its own modules")

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor | None:
        return None

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        return proposed, state

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return w

    def harden_activation(self, x: torch.Tensor, surrogate: float) -> torch.Tensor:
        raise AssertionError("activations of the float network are its own modules")

    def relaxed(self, width: float) -> FloatNetwork:
        return self
