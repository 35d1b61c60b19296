"""No quantization: the float network, trained as it is. The ceiling of a comparison.

    w_seen = w

Weights, activations and initial values are the float network's own. It has no controls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.parameters import FloatConfig

_BITS = 32.0  # of a float32 weight


@dataclass(frozen=True)
class FloatNetwork(Method):
    """The float network; see the module's docstring. It has no levels, so that it is not deployed as integers."""

    @property
    def controls(self) -> tuple[Control, ...]:
        return ()

    @property
    def quantizes(self) -> Quantizes:
        return "weight"  # so that every activation stays the module's own

    @property
    def bits(self) -> float:
        return _BITS

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        return w, {}, {}

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return w

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        raise AssertionError("activations of the float network are its own modules")

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return w


def build(config: FloatConfig) -> FloatNetwork:
    """The one that there is."""
    return FloatNetwork()
