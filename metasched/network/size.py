"""The exact size of a deployed network in bytes: packed levels, scales, and what stays in float.

Each tensor is packed for itself, into whole bytes: n elements of b bits take ceil(n b / 8) bytes.

    weight on K levels      n indices of ceil(log2 K) bits, and its scales in float32 (another method may store
                            something else, see ``Method.storage``)
    activation on levels    one scale in float32
    all other parameters, and the running statistics of batch normalization: float32

Integer buffers (counts of batches) are not deployed. Packing five ternary weights in a byte, as ``metasched deploy``
also reports, would take 20 % less; it is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metasched.network.flat import Tensors, of_layers
from metasched.network.quantized import QuantizedNetwork

FLOAT_BITS = 32


@dataclass(frozen=True)
class TensorSize:
    """What is stored of one tensor.

    Attributes:
        name: of the parameter or buffer.
        what: ``levels``, ``scale``, ``activation scale``, ``float``, or what else a method stores.
        elements: how many.
        bits: of each.
    """

    name: str
    what: str
    elements: int
    bits: int

    @property
    def bytes(self) -> int:
        """Packed, in whole bytes."""
        return packed_size(self.elements, self.bits)


def packed_size(elements: int, bits: int) -> int:
    """Bytes of ``elements`` codes of ``bits`` bits each: ceil(elements bits / 8).

    >>> packed_size(3, 3), packed_size(8, 3), packed_size(5, 32)
    (2, 3, 20)
    """
    return -(-elements * bits // 8)


def pack_codes(codes: npt.NDArray[np.integer], bits: int) -> bytes:
    """Codes 0 .. 2^bits - 1 of any shape, packed without gaps, the first in the lowest bits; the rest is zeros.

    >>> pack_codes(np.array([1, 2, 3]), 3).hex()
    'd100'
    """
    flat = np.asarray(codes).reshape(-1)
    assert flat.size == 0 or 0 <= flat.min() <= flat.max() < 2**bits
    one_a_row = (flat[:, None] >> np.arange(bits)) & 1
    return np.packbits(one_a_row.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def sizes(
    network: QuantizedNetwork, params: Tensors | None = None, state: Tensors | None = None
) -> tuple[TensorSize, ...]:
    """What is stored of each tensor of a network, in the order of its parameters.

    Args:
        network: result of ``quantize``.
        params, state: [...] after training, for methods whose levels are an outcome; None: those before it, in which
            learned scales are fitted as far as they can be without data.
    """
    own = {name: p.detach() for name, p in network.module.named_parameters()}
    if params is None or state is None:
        params, state = network.initialize(own, network.neutral(), seed=0)
    owns = of_layers({**state, **network.trainable(params)})
    by_key = {layer.weight_key: i for i, layer in enumerate(network.layers)}
    found = []
    for name, p in own.items():
        if (i := by_key.get(name)) is None:
            found.append(TensorSize(name, "float", p.numel(), FLOAT_BITS))
            continue
        stored = network.method_of(i).storage(params[name], owns[network.layers[i].name])
        found += [TensorSize(name, what, elements, bits) for what, (elements, bits) in stored.items()]
    found += [
        TensorSize(name, "float", b.numel(), FLOAT_BITS)
        for name, b in network.module.named_buffers()
        if b.is_floating_point()
    ]
    found += [
        TensorSize(layer.name, "activation scale", 1, FLOAT_BITS)
        for layer in network.layers
        if "activation" in layer.quantizes
    ]
    return tuple(found)


def network_bytes(network: QuantizedNetwork) -> int | None:
    """The size of the deployed network in bytes; None where training decides it. See the module's docstring."""
    if any(network.method_of(i).trained_size for i in range(len(network.layers))):
        return None
    return sum(tensor.bytes for tensor in sizes(network))
