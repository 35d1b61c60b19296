"""The identity of a quantized network's state: which layers it is of, on which levels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

from metasched.methods.base import Method
from metasched.network.quantize import QuantizedNetwork

_BITS = 64


def identity(network: QuantizedNetwork, state: Iterable[str], trainable: Iterable[str]) -> torch.Tensor:
    """A hash of layers, levels and names of tensors as 64 numbers 0 or 1, in the default dtype.

    Numbers of 0 and 1 outlast what is done to state dicts: averages of weights, casts to float16.

    Args:
        network: the network.
        state, trainable: names of the method's tensors, in their order in the state dict.
    """
    levels = [level for method in network.methods or (network.method,) for level in _levels(method)]
    layers = [(layer.name, layer.quantizes, layer.num_weights) for layer in network.layers]
    text = repr((layers, levels, list(state), list(trainable)))
    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=_BITS // 8).digest(), "big")
    return torch.tensor([float(digest >> i & 1) for i in range(_BITS)])


def _levels(method: Method) -> list[object]:
    quantizer = getattr(method, "quantizer", None)
    return [getattr(getattr(quantizer, key, None), "levels", None) for key in ("levels", "activation_levels")]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two identities [64] are equal."""
    return one.shape == other.shape and torch.equal(one.cpu() > 0.5, other.cpu() > 0.5)
