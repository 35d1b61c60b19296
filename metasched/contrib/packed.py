"""Training with discrete weights that are packed between steps, and the memory of a training state in bytes.

For methods without float weights, a weight takes a few bits between two steps (contrib/packing.py); its float tensor
exists only during a step, for the forward and backward pass. The moments of the optimizer are floats: two per weight
for Adam, one for SGD with momentum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from metasched.contrib.packing import pack, unpack
from metasched.methods.discrete import Discrete
from metasched.network.flat import Tensors, rows
from metasched.network.quantized import QuantizedNetwork
from metasched.training.loop import InnerRun
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import inner_step


class PackedState(NamedTuple):
    """A training state with packed discrete weights.

    Attributes:
        rest: the training state without the discrete weights.
        weights: parameter -> packed states, uint8 [ceil(N bits / 8)].
    """

    rest: TrainingState
    weights: Tensors


def pack_state(network: QuantizedNetwork, state: TrainingState) -> PackedState:
    """Packs the weights of the quantized layers; the method must be without float weights."""
    levels = _method(network).quantizer.levels
    weights = {key: pack(state.params[key], state.method[scale], levels) for key, scale in _keys(network)}
    rest = {key: p for key, p in state.params.items() if key not in weights}
    return PackedState(state._replace(params=rest), weights)


def unpack_state(network: QuantizedNetwork, packed: PackedState) -> TrainingState:
    """Restores the training state, bit for bit."""
    levels = _method(network).quantizer.levels
    named = dict(network.module.named_parameters())
    params = dict(packed.rest.params)
    for key, scale in _keys(network):
        params[key] = unpack(packed.weights[key], named[key].shape, packed.rest.method[scale], levels)
    return packed.rest._replace(params={name: params[name] for name in [*named, *network.trainable(params)]})


def train_packed(problem: InnerProblem, controls: Mapping[str, torch.Tensor]) -> InnerRun:
    """``loop.train`` with packed weights between the steps; equal bits.

    Args:
        problem: inner problem with a method without float weights.
        controls: {control: [T, L]}.

    Returns:
        the final state and the losses [T].
    """
    packed = pack_state(problem.network, problem.initial(rows(controls, 0)))
    losses = []
    for step in range(problem.steps):
        state = unpack_state(problem.network, packed)
        state, loss, _ = inner_step(problem, state, rows(controls, step), step, differentiable=False)
        packed = pack_state(problem.network, state)
        losses.append(loss)
    return InnerRun(unpack_state(problem.network, packed), torch.stack(losses))


def bytes_kept(network: QuantizedNetwork, state: TrainingState | PackedState) -> dict[str, int]:
    """Size in bytes of the tensors of a training state.

    Returns:
        ``weights``: weights of the quantized layers; ``moments``: their moments in the optimizer; ``method``: state of
        the method, such as scales; ``rest``: other parameters with their moments, and buffers.
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
    assert isinstance(network.method, Discrete), "only methods without float weights can be packed"
    assert not network.methods, "all layers have one method"
    return network.method


def _keys(network: QuantizedNetwork) -> Iterator[tuple[str, str]]:
    """(name of the weight, name of its scale in the method's state) of each quantized layer."""
    for layer in network.layers:
        yield layer.weight_key, f"{layer.name}/scale"


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
