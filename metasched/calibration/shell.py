"""The network that is being calibrated: a module as ``prepare`` makes it, into which layer after layer is put."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metasched.calibration.batches import Call
from metasched.calibration.unit import Rounded
from metasched.network.flow import Example
from metasched.network.hosting import Quantizer, Running, hosted, put_quantizer
from metasched.network.prepare import with_quantizers
from metasched.network.quantized import QuantizedNetwork
from metasched.network.sites import recompute_by

_SCALE = "scale"
_MOST = 2**20  # numbers that a scale of activations is fitted to


class Shell:
    """Attributes: ``module``, in eval mode, where all layers compute as they are deployed.

    Args:
        network: result of ``quantize``.
        example: as for ``quantize``.
    """

    def __init__(self, network: QuantizedNetwork, example: Example) -> None:
        self.module = with_quantizers(network, example, seed=0).eval()
        self.quantizers = sorted({q for *_, q in hosted(self.module)}, key=lambda q: q.index)

    @torch.no_grad()
    def put(self, i: int, rounded: Rounded) -> None:
        """Puts a rounded weight into layer i, with the method and the state that give it."""
        old = self.quantizers[i]
        kept = {name: t for name, t in old.state().items() if name.removesuffix("_factor") != _SCALE}
        trainable = {name: t for name, t in old.trainable().items() if name != _SCALE}
        state = {**rounded.state, **kept}
        new = Quantizer(rounded.method, old.layer, i, old.seed, state, trainable, tuple(trainable)).eval()
        for _, owner, key, quantizer in hosted(self.module):
            if quantizer is old:
                put_quantizer(owner, key, new, rounded.weight)
        self.quantizers[i] = new
        recompute_by(self.module, Running(self.quantizers))  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def fit_activation(self, i: int, calls: Sequence[Call]) -> None:
        """Fits what is learned of the activation of layer i to its inputs in passes of the module."""
        quantizer = self.quantizers[i]
        if "activation" not in quantizer.layer.quantizes or not quantizer.method.fits_activations:
            return
        watching = _Watching(self.quantizers, i)
        recompute_by(self.module, watching)  # pyright: ignore[reportArgumentType]
        for args, kwargs in calls:
            self.module(*args, **kwargs)
        recompute_by(self.module, Running(self.quantizers))  # pyright: ignore[reportArgumentType]
        seen = torch.cat(watching.seen)
        seen = seen[:: -(-len(seen) // _MOST)]
        found, _ = quantizer.method.fit_activation(seen, quantizer.tensors())
        for name, value in found.items():
            quantizer.get_parameter(name).copy_(value)


class _Watching(Running):
    """Keeps the inputs [N, ...] of the activation of one layer."""

    def __init__(self, quantizers: list[Quantizer], layer: int) -> None:
        super().__init__(quantizers)
        self.layer, self.seen = layer, []

    def activate(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """The activation [N, ...] of a layer for its input."""
        if layer == self.layer:
            self.seen.append(x.detach().flatten())
        return super().activate(layer, x)
