"""``convert``: a trained network as plain modules, with hard weights and staircases of torch's own functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.methods.base import Method, State
from metasched.methods.tensors import LayerQuantizer
from metasched.network.flat import Tensors
from metasched.network.hosting import hosted, unhost
from metasched.network.module import QuantizedModule
from metasched.network.plain import without_sites
from metasched.network.quantized import QuantizedNetwork
from metasched.network.recomputing import holders
from metasched.network.sharding import sharded
from metasched.network.sites import activations, copied_with_computed
from metasched.quantizers.levels import LevelSet

Calibration = Iterable[Any] | Callable[[nn.Module], object]
_WRAPPERS = {  # what has the network inside
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}


def convert(module: nn.Module, calibrate: Calibration | None = None) -> nn.Module:
    """The trained network as an ordinary module, in eval mode; the given one stays as it is.

    Weights are parameters on their levels, activations are graphs of torch's functions. It computes what the given
    module computes in eval mode, bit for bit, but for the statistics of batch normalization. Loading a ``torch.save``
    of it needs the model's own code and torch, and running it torch alone; ``torch.export``, ``torch.jit.trace`` and
    ``torch.onnx.export`` record it.

    Where activations are functions, or modules that are called several times, the network or the modules that call them
    become graphs of torch.fx. Where torch.fx cannot trace these, the network becomes the graph that torch.export
    records for inputs like the example of ``prepare``, equal up to rounding; a warning says so, and which sizes are
    fixed.

    Args:
        module: what ``prepare`` has returned, or a ``QuantizedModule``, also in a wrapper such as
            DistributedDataParallel or AveragedModel.
        calibrate: batches of the training data, for which batch normalization is estimated anew in the hard network: as
            the mean over the batches. A batch is a tensor, a dict of keyword arguments, or a sequence that begins with
            the input, as loaders give it. Or a function of the network that runs it. None: the running statistics,
            which were gathered while the network was not hard.

    Raises:
        MetaschedError: the module is not quantized, there are no batches, a method of one's own computes
            activations itself, or activations are functions, and nothing can trace the network.
    """
    while (inner := _WRAPPERS.get(type(module).__name__)) is not None:
        module = getattr(module, inner)
    if not isinstance(module, nn.Module) or not (isinstance(module, QuantizedModule) or hosted(module)):
        raise MetaschedError("convert", "the module has nothing that prepare has made", "give what prepare returned")
    if any(sharded(p) for p in module.parameters()):
        fix = "load its full state dict into a module that is prepared alike and not sharded, and convert that"
        raise MetaschedError("convert", "the module is sharded over processes", fix)
    if isinstance(module, QuantizedModule):
        module.hardened()  # which fits scales to weights that were loaded before the first step
        params, buffers = module.parameters_by_name(), dict(module.module.named_buffers())
        return converted(module.network, params, module.method_state(), buffers, calibrate)
    if (watch := hosted(module)[0][-1].watch) is not None:
        watch.converting()
    plain = copied_with_computed(module).eval()
    _estimate(plain, calibrate)
    found = hosted(plain)
    owns = {q.index: {**q.state(), **q.trainable()} for _, _, _, q in found}
    stairs = {q.index: _stair(q.method, q.layer, owns[q.index]) for *_, q in found if "activation" in q.layer.quantizes}
    hard: dict[int, nn.Parameter] = {}  # by the parameter, which several modules may share
    for _, owner, key, quantizer in found:
        w = owner._parameters[key]
        assert w is not None
        if id(w) not in hard:
            with torch.no_grad():
                hard[id(w)] = nn.Parameter(quantizer.weight(w).detach(), requires_grad=w.requires_grad)
    for _, owner, key, _ in found:
        w = owner._parameters[key]
        unhost(owner, key, hard[id(w)])
    for _, owner, key, quantizer in found:
        _note_levels(owner, key, quantizer.method, owns[quantizer.index])
    return without_sites(plain, stairs)


@torch.no_grad()
def converted(
    network: QuantizedNetwork, params: Tensors, state: Tensors, buffers: Tensors, calibrate: Calibration | None = None
) -> nn.Module:
    """A network of the pure core as ``convert`` gives a prepared one; the network stays as it is.

    Args:
        network: result of ``quantize``.
        params: parameters after training, not yet hard, with the method's trainable tensors as ``layer/name``; [...].
        state: of the method after training, as ``layer/name``.
        buffers: of the module, with the running statistics of batch normalization.
        calibrate: as for ``convert``.

    Raises:
        MetaschedError: as ``convert``.
    """
    plain = copied_with_computed(network.module).eval()
    hard, owns = network.harden(params, state), network.owns(params, state)
    for name, p in plain.named_parameters():
        p.copy_(hard[name])
    for name, b in plain.named_buffers():
        b.copy_(buffers[name])
    stairs = {}
    for i, layer in enumerate(network.layers):
        method = network.method_of(i)
        for owner, key in holders(plain, layer.weight_key):
            _note_levels(owner, key, method, owns[i])
        if "activation" in layer.quantizes:
            stairs[i] = _stair(method, layer, owns[i])

    def activate(i: int, x: torch.Tensor) -> torch.Tensor:
        return network.method_of(i).harden_activation(x, owns[i], 0.5)

    with activations(activate):
        _estimate(plain, calibrate)
        return without_sites(plain, stairs)


def _note_levels(owner: nn.Module, key: str, method: Method, own: State) -> None:
    """Notes at a module the levels of its weight and their scale, [C_out or 1, 1, ...], if the method has any."""
    found = method.level_set_of(own)
    if found is not None:
        note = {"weight": key, "levels": found[0], "scale": found[1]}
        owner.quantization = note  # pyright: ignore[reportArgumentType]


def _stair(method: Method, layer: Layer, own: State) -> tuple[LevelSet, torch.Tensor | float]:
    """The level set of a layer's activation, and the value of level 1, a number or 0-d.

    Raises:
        MetaschedError: the method does not say.
    """
    quantizer = getattr(method, "quantizer", None)
    if not isinstance(quantizer, LayerQuantizer) or quantizer.activation_levels is None or not method.hardens_by_levels:
        problem = f"is computed by the method {type(method).__name__} itself, and convert knows level sets"
        raise MetaschedError(f"model.{layer.name}: activation", problem, "let its harden_activation be that of Method")
    scale = quantizer.activation_unit(own)
    return quantizer.activation_levels, scale.detach().clone() if isinstance(scale, torch.Tensor) else float(scale)


@torch.no_grad()
def _estimate(module: nn.Module, calibrate: Calibration | None) -> None:
    """Estimates the statistics of batch normalization anew, as means over the batches.

    Raises:
        MetaschedError: there are no batches.
    """
    if calibrate is None:
        return
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
        m.training = True
    try:
        if not _run(module, calibrate):
            raise MetaschedError("calibrate", "has no batches", "give batches of the training data")
    finally:
        for m, momentum in zip(norms, before, strict=True):
            m.momentum, m.training = momentum, False


def _run(module: nn.Module, calibrate: Calibration) -> int:
    """Runs the module on all batches; returns their number."""
    if not isinstance(calibrate, Iterable):
        calibrate(module)
        return 1
    count = 0
    for batch in calibrate:
        count += 1
        if isinstance(batch, Mapping):
            module(**batch)
        else:
            module(batch[0] if isinstance(batch, Sequence) else batch)
    return count
