"""No quantization: the float network, trained unchanged; the ceiling of comparisons.

    w_seen = w

Weights, activations and initial values are those of the float network. The method has no control.
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
    """The float network; see the module's docstring. It has no levels and cannot be deployed as integers."""

    @property
    def controls(self) -> tuple[Control, ...]:
        return ()

    @property
    def quantizes(self) -> Quantizes:
        return "weight"  # the activation modules stay in place

    @property
    def bits(self) -> float:
        return _BITS

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        return w, {}, {}

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return w

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        raise AssertionError("the float network keeps its activation modules")

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return w


def build(config: FloatConfig) -> FloatNetwork:
    """The float network; its configuration has no parameter."""
    return FloatNetwork()
