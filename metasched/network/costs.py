"""What a trained quantized network costs: the bits of each weight, times how often it is multiplied.

    cost = sum_l M_l b_l,    relative cost = cost / sum_l 32 M_l

M_l are the multiply-accumulates of layer l in a pass of the example, b_l the mean bits of its deployed weight (pruned
channels have 0). The bits of activations are left out: they are the same factor for networks that one compares.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from metasched.core.errors import MetaschedError
from metasched.network.convert import convert
from metasched.network.flow import Example, run_example
from metasched.network.hosting import hosted
from metasched.network.operations import operations

_FLOAT = 32  # bits


@dataclass(frozen=True)
class LayerCost:
    """A layer: its name, the mean bits of its deployed weight, and its multiply-accumulates."""

    layer: str
    bits: float
    macs: int


@dataclass(frozen=True)
class BitOperations:
    """The quantized layers, in the order of the data flow."""

    layers: tuple[LayerCost, ...]

    @property
    def total(self) -> float:
        """Multiply-accumulates times bits of the weight, over all quantized layers."""
        return sum(row.macs * row.bits for row in self.layers)

    @property
    def relative(self) -> float:
        """The total as a share of that of weights of 32 bits, in [0, 1]."""
        return self.total / max(_FLOAT * sum(row.macs for row in self.layers), 1)


def bit_operations(module: nn.Module, example: Example) -> BitOperations:
    """The cost of a network that ``prepare`` has made, as it would be deployed now.

    Args:
        module: what ``prepare`` has returned.
        example: an input, as for ``prepare``; of a batch all examples count.

    Raises:
        MetaschedError: the module is not prepared.
    """
    if not isinstance(module, nn.Module) or not (found := hosted(module)):
        raise MetaschedError("bit_operations", "the module has no quantized layer", "give what prepare has returned")
    counts = operations(convert(module), lambda plain: run_example(plain, example))
    rows: dict[int, LayerCost] = {}
    for _, owner, key, quantizer in found:
        w = owner._parameters[key]
        assert w is not None
        own = {**quantizer.state(), **quantizer.trainable()}
        bits = quantizer.method.bits_in(own, w.shape)
        rows[quantizer.index] = LayerCost(quantizer.layer.name, bits, counts[quantizer.layer.weight_key])
    return BitOperations(tuple(rows[i] for i in sorted(rows)))
