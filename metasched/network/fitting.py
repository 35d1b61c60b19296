"""What starts at the first inputs of activations: learned scales of activations."""

from __future__ import annotations

from collections.abc import Collection

import torch

from metasched.core.errors import MetaschedError
from metasched.network.flow import Example, run_example
from metasched.network.quantize import QuantizedNetwork, Tensors


def fitted(
    network: QuantizedNetwork, own: Tensors, example: Example | None, seed: int, kept: Collection[str], where: str
) -> tuple[Tensors, Tensors]:
    """The trainable tensors that start at a first batch, and their state, [...] each, as ``layer/name``.

    Args:
        network: the quantized network.
        own: parameters of the float network.
        example: as for ``quantize``.
        seed: of the initial weights, where the method draws them.
        kept: layers that keep their weights.
        where: what an error begins with.

    Raises:
        MetaschedError: there is no example, or it does not reach a layer whose activation is quantized.
    """
    if example is None:
        problem = "is missing, and learned scales of activations start at a first batch"
        raise MetaschedError(f"{where}: example", problem, "pass a batch of the training data")
    params, state = network.initialize(own, network.neutral(), seed, kept)
    call = network.call(network.buffers())
    with torch.random.fork_rng(devices=[]):  # dropout in this pass does not move the user's generator
        return network.fit(call, params, state, lambda model: run_example(model, example))
