"""The identity of a quantized network's state: which layers it is of, on which levels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

from metasched.core.layer import Layer
from metasched.methods.base import Method
from metasched.network.quantized import QuantizedNetwork

_BITS = 64


def identity(network: QuantizedNetwork, state: Iterable[str], trainable: Iterable[str]) -> torch.Tensor:
    """A hash of layers, levels and names of tensors as 64 numbers 0 or 1, in the default dtype.

    Numbers of 0 and 1 outlast what is done to state dicts: averages of weights, casts to float16.

    Args:
        network: the network.
        state, trainable: names of the method's tensors, in their order in the state dict.
    """
    layers = [_features(layer) for layer in network.layers]
    levels = [level for method in network.methods or (network.method,) for level in _levels(method)]
    return _numbers(repr((layers, levels, list(state), list(trainable))))


def layer_identity(method: Method, layer: Layer, state: Iterable[str], trainable: Iterable[str]) -> torch.Tensor:
    """``identity`` of one layer alone."""
    return _numbers(repr((_features(layer), _levels(method), list(state), list(trainable))))


def fingerprint(identities: Iterable[torch.Tensor]) -> str:
    """A hash of the identities [64] of all layers as 16 hexadecimal digits."""
    return _digest(repr([(one.cpu() > 0.5).tolist() for one in identities])).hex()


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two identities [64] are equal."""
    return one.shape == other.shape and torch.equal(one.cpu() > 0.5, other.cpu() > 0.5)


def _features(layer: Layer) -> tuple[object, ...]:
    return layer.name, layer.quantizes, layer.num_weights


def _levels(method: Method) -> list[object]:
    quantizer = getattr(method, "quantizer", None)
    keys = ("levels", "activation_levels")
    found: list[object] = [getattr(getattr(quantizer, key, None), "levels", None) for key in keys]
    by_channel = getattr(getattr(method, "base", method), "bits_of", None)
    return found if by_channel is None else [*found, by_channel]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_BITS // 8).digest()


def _numbers(text: str) -> torch.Tensor:
    digest = int.from_bytes(_digest(text), "big")
    return torch.tensor([float(digest >> i & 1) for i in range(_BITS)])
