"""Training that keeps its discrete weights packed between the steps, and what training keeps, counted in bytes.

Between two steps a weight of a method without float weights is a few bits (quantizers/packing.py); its float tensor
exists within the step, for the forward and backward pass. What the optimizer carries is in float: two moments a weight
for Adam, one for SGD with momentum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from metasched.contrib.packing import pack, unpack
from metasched.methods.discrete import Discrete
from metasched.network.quantize import QuantizedNetwork, Tensors, rows
from metasched.training.loop import InnerRun
from metasched.training.step import InnerProblem, TrainingState, inner_step


class PackedState(NamedTuple):
    """A training state without its discrete weights, and those, packed.

    Attributes:
        rest: everything else.
        weights: parameter -> packed states, uint8.
    """

    rest: TrainingState
    weights: Tensors


def pack_state(network: QuantizedNetwork, state: TrainingState) -> PackedState:
    """Pack the weights of the layers of a method without float weights."""
    levels = _method(network).quantizer.levels
    weights = {key: pack(state.params[key], state.method[scale], levels) for key, scale in _keys(network)}
    rest = {key: p for key, p in state.params.items() if key not in weights}
    return PackedState(state._replace(params=rest), weights)


def unpack_state(network: QuantizedNetwork, packed: PackedState) -> TrainingState:
    """The training state again, bit for bit."""
    levels = _method(network).quantizer.levels
    named = dict(network.module.named_parameters())
    params = dict(packed.rest.params)
    for key, scale in _keys(network):
        params[key] = unpack(packed.weights[key], named[key].shape, packed.rest.method[scale], levels)
    return packed.rest._replace(params={name: params[name] for name in [*named, *network.trainable(params)]})


def train_packed(problem: InnerProblem, controls: Mapping[str, torch.Tensor]) -> InnerRun:
    """``loop.train`` with the same bits, and packed weights between the steps."""
    packed = pack_state(problem.network, problem.initial(rows(controls, 0)))
    losses = []
    for step in range(problem.steps):
        state = unpack_state(problem.network, packed)
        state, loss, _ = inner_step(problem, state, rows(controls, step), step, differentiable=False)
        packed = pack_state(problem.network, state)
        losses.append(loss)
    return InnerRun(unpack_state(problem.network, packed), torch.stack(losses))


def bytes_kept(network: QuantizedNetwork, state: TrainingState | PackedState) -> dict[str, int]:
    """Bytes of the tensors that training keeps from step to step.

    Returns:
        ``weights``: of the quantized layers; ``moments``: what the optimizer has for them; ``method``: scales and
        whatever else the method keeps; ``rest``: other parameters with their moments, and buffers.
    """
    rest, packed = state if isinstance(state, PackedState) else (state, {})
    chosen = {layer.weight_key for layer in network.layers}
    weights = {**rest.params, **packed}
    moments = {key: t for key, t in rest.optimizer.items() if key.partition(".")[2] in chosen}
    kept = {
        "weights": _bytes(weights[key] for key in chosen),
        "moments": _bytes(moments.values()),
        "method": _bytes(rest.method.values()),
    }
    total = _bytes([*weights.values(), *rest.buffers.values(), *rest.optimizer.values(), *rest.method.values()])
    return {**kept, "rest": total - sum(kept.values())}


def _method(network: QuantizedNetwork) -> Discrete:
    assert isinstance(network.method, Discrete), "only weights that are states at every step can be packed"
    return network.method


def _keys(network: QuantizedNetwork) -> Iterator[tuple[str, str]]:
    """(parameter, its scale in the method's state) of each quantized layer."""
    for layer in network.layers:
        yield layer.weight_key, f"{layer.name}/scale"


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
