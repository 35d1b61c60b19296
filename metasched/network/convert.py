"""``convert``: a trained network as plain modules, with hard weights and staircases of torch's own functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from metasched.core.errors import MetaschedError
from metasched.methods.tensors import LayerQuantizer
from metasched.network.hosting import Quantizer, hosted, unhost
from metasched.network.plain import without_sites
from metasched.network.sharding import sharded
from metasched.network.sites import copied_with_computed

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
        module: what ``prepare`` has returned, also in a wrapper such as DistributedDataParallel or AveragedModel.
        calibrate: batches of the training data, for which batch normalization is estimated anew in the hard network: as
            the mean over the batches. A batch is a tensor, a dict of keyword arguments, or a sequence that begins with
            the input, as loaders give it. Or a function of the network that runs it. None: the running statistics,
            which were gathered while the network was not hard.

    Raises:
        MetaschedError: the module does not come from ``prepare``, there are no batches, a method of one's own computes
            activations itself, or activations are functions, and nothing can trace the network.
    """
    while (inner := _WRAPPERS.get(type(module).__name__)) is not None:
        module = getattr(module, inner)
    if not isinstance(module, nn.Module) or not hosted(module):
        raise MetaschedError("convert", "the module has nothing that prepare has made", "give what prepare returned")
    if any(sharded(p) for p in module.parameters()):
        fix = "load its full state dict into a module that is prepared alike and not sharded, and convert that"
        raise MetaschedError("convert", "the module is sharded over processes", fix)
    plain = copied_with_computed(module).eval()
    if calibrate is not None:
        with torch.no_grad(), _estimating(plain):
            if not _run(plain, calibrate):
                raise MetaschedError("calibrate", "has no batches", "give batches of the training data")
    found = hosted(plain)
    stairs = {q.index: level_set_of(q) for _, _, _, q in found if "activation" in q.layer.quantizes}
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
        if (weights := weight_levels_of(quantizer)) is not None:
            owner.quantization = {"weight": key, **weights}  # pyright: ignore[reportArgumentType]
    return without_sites(plain, stairs)


def weight_levels_of(quantizer: Quantizer) -> dict[str, Any] | None:
    """The levels of a layer's weight and their scale, [C_out or 1, 1, ...]; None if the method has none."""
    own, scale = (
        getattr(quantizer.method, "quantizer", None),
        {**quantizer.state(), **quantizer.trainable()}.get("scale"),
    )
    if not isinstance(own, LayerQuantizer) or scale is None:
        return None
    return {"levels": own.levels.levels, "scale": scale.detach().clone()}


def level_set_of(quantizer: Quantizer) -> tuple[Any, torch.Tensor | float]:
    """The level set of a layer's activation, and the value of level 1, a number or 0-d.

    Raises:
        MetaschedError: the method does not say.
    """
    own = getattr(quantizer.method, "quantizer", None)
    if not isinstance(own, LayerQuantizer) or own.activation_levels is None or not quantizer.method.hardens_by_levels:
        name = type(quantizer.method).__name__
        problem = f"is computed by the method {name} itself, and convert knows level sets"
        raise MetaschedError(
            f"model.{quantizer.layer.name}: activation", problem, "let its harden_activation be that of Method"
        )
    scale = own.activation_unit({**quantizer.state(), **quantizer.trainable()})
    return own.activation_levels, scale.detach().clone() if isinstance(scale, torch.Tensor) else float(scale)


@contextmanager
def _estimating(module: nn.Module) -> Iterator[None]:
    """Within: batch normalizations with running statistics estimate them, as means over the batches."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
        m.training = True
    try:
        yield
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
