"""A layer as a schedule sees it: features that exist for any network, so that one schedule serves many networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["conv", "linear"]
Quantizes = Literal["weight", "activation", "weight+activation"]


@dataclass(frozen=True)
class Layer:
    """One unit of scheduling: a convolution or linear layer with the activation that follows it.

    ANA gives a weight tensor and the activation after it one timer (quantlib, ``all_ana.py``); so do we.

    Attributes:
        name: dotted name of the module in the network.
        depth: relative depth in [0, 1]; the i-th of L scheduled layers has i / (L - 1), a single layer 0.
        kind: ``conv`` or ``linear``.
        quantizes: which tensors the method quantizes here.
        fan_in: inputs that one output sums over (at least 1).
        num_weights: number of elements of the weight.
        bits: log2 of the number of weight levels (ternary: 1.585).
    """

    name: str
    depth: float
    kind: Kind
    quantizes: Quantizes
    fan_in: int
    num_weights: int
    bits: float

    @property
    def weight_key(self) -> str:
        """The weight's name among the parameters of the network."""
        return weight_key(self.name)


def weight_key(layer: str) -> str:
    """The name of a layer's weight among the parameters of the network, from the layer's name."""
    return f"{layer}.weight"
