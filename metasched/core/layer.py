"""The description of a layer for schedules: features that exist for any network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["conv", "linear"]  # of the layers that ``quantize`` finds; a file of another program may have others
Quantizes = Literal["weight", "activation", "weight+activation"]


@dataclass(frozen=True)
class Layer:
    """One unit of scheduling: a convolution or linear layer with the activation that follows it.

    In ANA, too, a weight tensor and the activation after it share one timer (quantlib, ``all_ana.py``).

    Attributes:
        name: dotted name of the module in the network; of the weight, where that is not called ``weight``.
        depth: relative depth in [0, 1]: i / (L - 1) for layer i = 0 .. L - 1 of L scheduled layers; 0 if L = 1.
        kind: ``conv`` or ``linear``; attention and embeddings are ``linear``. Files of other programs may have others.
        quantizes: the tensors of the layer that the method quantizes.
        fan_in: number of inputs that each output sums over, at least 1.
        num_weights: number of elements of the weight.
        bits: log2 of the number of weight levels (ternary: 1.585).
        key: name of the weight among the parameters of the network; empty: ``NAME.weight``. Files do not have it.
    """

    name: str
    depth: float
    kind: str
    quantizes: Quantizes
    fan_in: int
    num_weights: int
    bits: float
    key: str = field(default="", compare=False)

    @property
    def weight_key(self) -> str:
        """Name of the layer's weight among the parameters of the network."""
        return self.key or weight_key(self.name)


def weight_key(layer: str) -> str:
    """Name of the weight of a layer among the parameters of the network."""
    return f"{layer}.weight"
