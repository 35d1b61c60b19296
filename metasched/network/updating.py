"""The end of a step: what a method makes of the optimizer's proposal, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.methods.base import Evaluating
from metasched.network.flat import ControlRow, Tensors, of_layers, prefixed

if TYPE_CHECKING:
    from metasched.network.quantized import QuantizedNetwork


def updated(
    network: QuantizedNetwork,
    params: Tensors,
    proposed: Tensors,
    state: Tensors,
    row: ControlRow,
    seed: int,
    step: int,
    loss: Callable[[Tensors], torch.Tensor] | None = None,
) -> tuple[Tensors, Tensors]:
    """What becomes of the optimizer's proposal: the next parameters, and the method's next state, [...] each.

    Args:
        network: whose method settles it.
        params, proposed, state, row, seed, step: of this step.
        loss: of its batch at other parameters, 0-d, without a graph; for methods that evaluate it.

    Raises:
        MetaschedError: the method evaluates the loss, and there is none.
    """
    if isinstance(network.method, Evaluating):
        return _updated_evaluated(network, params, proposed, state, row, seed, step, loss)
    settled, states = dict(proposed), {}
    values, trainable = network.values(row), network.trainable(params)
    owns, news = of_layers({**state, **trainable}), of_layers(network.trainable(proposed))
    for i, layer in enumerate(network.layers):
        key = layer.weight_key
        settled[key], own = network.method_of(i).update(
            params[key], proposed[key], owns[layer.name], values[i], Draw(seed, step, i)
        )
        states |= prefixed(layer, own, but=trainable)
        if layer.name in news:
            settled |= prefixed(
                layer, network.method_of(i).update_trainable(owns[layer.name], news[layer.name], values[i])
            )
    return settled, states


def _updated_evaluated(
    network: QuantizedNetwork,
    params: Tensors,
    proposed: Tensors,
    state: Tensors,
    row: ControlRow,
    seed: int,
    step: int,
    loss: Callable[[Tensors], torch.Tensor] | None,
) -> tuple[Tensors, Tensors]:
    """``updated``, layer by layer, each at the parameters that those before it have left."""
    if loss is None:
        problem = "batch needs the loss of the batch at other weights, which only metasched's own steps evaluate"
        raise MetaschedError("method.energy", problem, "set it to first_order, or meta.estimator to sweep")
    settled, states, moved = dict(proposed), {}, {name: p.detach() for name, p in params.items()}
    here, values, trainable = loss(moved), network.values(row), network.trainable(params)
    owns, news = of_layers({**state, **trainable}), of_layers(network.trainable(proposed))
    for i, layer in enumerate(network.layers):
        key, method = layer.weight_key, network.method_of(i)
        assert isinstance(method, Evaluating)
        settled[key], own, here = method.update_evaluated(
            params[key],
            proposed[key],
            owns[layer.name],
            values[i],
            Draw(seed, step, i),
            lambda w, key=key: loss({**moved, key: w.detach()}),
            here,
        )
        moved[key] = settled[key].detach()
        states |= prefixed(layer, own, but=trainable)
        if layer.name in news:
            settled |= prefixed(
                layer, network.method_of(i).update_trainable(owns[layer.name], news[layer.name], values[i])
            )
    return settled, states
