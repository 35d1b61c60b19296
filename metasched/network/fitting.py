"""What starts at the first inputs of activations: learned scales of activations."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from metasched.core.errors import MetaschedError
from metasched.network.flat import Call, Model, Tensors, of_layers
from metasched.network.flow import Example, run_example
from metasched.network.quantized import QuantizedNetwork, within


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
        return fit(network, call, params, state, lambda model: run_example(model, example))


@torch.no_grad()
def fit(
    network: QuantizedNetwork, call: Call, params: Tensors, state: Tensors, run: Callable[[Model], object]
) -> tuple[Tensors, Tensors]:
    """The trainable tensors [...] that start at first inputs of activations, and their state, as ``layer/name``.

    Args:
        network: the quantized network.
        call: runs the module; see ``call``.
        params, state: as ``initialize`` gives them, [...] each. Where a hypergradient is computed they must not
            depend on the controls: pass those of ``neutral``.
        run: runs the model that it gets on a first batch.

    Raises:
        MetaschedError: the batch does not reach a layer whose activation is quantized.
    """
    owns = of_layers({**state, **network.trainable(params)})
    found: dict[str, tuple[Tensors, Tensors]] = {}

    def activate(i: int, x: torch.Tensor) -> torch.Tensor:
        name = network.layers[i].name
        if name not in found:
            found[name] = network.method_of(i).fit_activation(x, owns[name])
        return network.method_of(i).harden_activation(x, {**owns[name], **found[name][0], **found[name][1]}, 0.5)

    run(within(activate, call, network.harden(params, state)))
    for layer in network.layers:
        if layer.quantizes == "weight+activation" and layer.name not in found:
            problem = "is not reached by the first batch, at which the scale of its activation starts"
            raise MetaschedError(f"model.{layer.name}", problem, "set method.activation_scale to a number")
    trainable, own = ({f"{name}/{key}": t for name, f in found.items() for key, t in f[i].items()} for i in (0, 1))
    assert not trainable.keys() & params.keys(), "a tensor is fitted that is there already"
    return trainable, own
