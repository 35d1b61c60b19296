"""Where scales start in one's own loop: at the weights of the first step, also if those were loaded or are zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from metasched.core.randomness import Draw
from metasched.methods.discrete import Discrete
from metasched.quantizers.constants import traced

if TYPE_CHECKING:
    from metasched.network.module import QuantizedModule

_NEAR = 0.01  # of the largest weight: what casts to other dtypes change is less


class Starts:
    """What the scales of a ``QuantizedModule`` were fitted to, until its first step.

    Attributes:
        zero: names of the layers that start at zero.
    """

    def __init__(self, module: QuantizedModule) -> None:
        layers = module.network.layers
        weights = {layer.name: module.module.get_parameter(layer.weight_key) for layer in layers}
        self._initial: dict[str, torch.Tensor] | None = {name: w.detach().clone() for name, w in weights.items()}
        self._dead: dict[str, torch.Tensor] = {}  # name -> where its scale fits zeros only, in the shape of the scale
        if not isinstance(module.network.method, Discrete):
            tensors = module.parameters_by_name() | module.method_state()
            for name, w in weights.items():
                scale = tensors.get(f"{name}/scale")
                if scale is None or not w.requires_grad:
                    continue
                rows = w.detach().reshape(len(scale.flatten()), -1)
                if bool((empty := (rows == 0).all(1)).any()):
                    self._dead[name] = empty.reshape(scale.shape)
        self.zero = [name for name, empty in self._dead.items() if bool(empty.all())]

    def done(self) -> None:
        """The scales are those of a state that was loaded."""
        self._initial = None

    @torch.no_grad()
    def fit(self, module: QuantizedModule, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """Before a step: fits scales to weights that are not those at the start; at the first step only."""
        if self._initial is None:
            return
        changed = self.fit_weights(module)
        self._initial = None
        if changed and module.network.fits_activations:
            own = {name: p.detach() for name, p in module.module.named_parameters()}
            kept = {layer.name for layer in module.network.layers}
            trainable, _ = module.fitted(own, lambda model: model(*inputs, **keywords), kept)
            tensors = module.parameters_by_name()
            for name, value in trainable.items():
                tensors[name].copy_(value)

    @torch.no_grad()
    def fit_weights(self, module: QuantizedModule) -> bool:
        """Fits the scales of weights, and their state, where the weights have been changed before the first step."""
        if self._initial is None or traced():
            return False
        tensors, changed = module.parameters_by_name() | module.method_state(), False
        for i, layer in enumerate(module.network.layers):
            w, was = tensors[layer.weight_key].detach(), self._initial[layer.name]
            was = was.to(w.device, w.dtype)
            if bool(((w - was).abs() <= _NEAR * was.abs().max()).all()):
                continue
            if _unit(module, i) and len(_hard(module, i, tensors).unique()) > 1:
                continue
            for name, value in _initial(module, i, w).items():
                tensors[f"{layer.name}/{name}"].copy_(value)
            self._initial[layer.name], changed = w.clone(), True
        return changed

    @torch.no_grad()
    def follow(self, module: QuantizedModule) -> None:
        """After a step: fits the scales that had zeros only, until a weight of the layer is frozen."""
        if not self._dead:
            return
        tensors = module.parameters_by_name() | module.method_state()
        for i, layer in enumerate(module.network.layers):
            if layer.name not in self._dead:
                continue
            frozen = tensors.get(f"{layer.name}/frozen")
            if frozen is not None and bool((frozen > 0).any()):
                del self._dead[layer.name]
                continue
            scale, empty = tensors[f"{layer.name}/scale"], self._dead[layer.name]
            fitted = _initial(module, i, tensors[layer.weight_key])["scale"]
            scale.copy_(torch.where(empty.to(scale.device), fitted, scale))


def _unit(module: QuantizedModule, i: int) -> bool:
    method = module.network.method_of(i)
    return method.keeping() != method


def _hard(module: QuantizedModule, i: int, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    layer = module.network.layers[i]
    own = {key.rpartition("/")[2]: t for key, t in tensors.items() if key.rpartition("/")[0] == layer.name}
    return module.network.method_of(i).harden(tensors[layer.weight_key].detach(), own, 0.5)


def _initial(module: QuantizedModule, i: int, w: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the method starts with for a layer that keeps its weight w [C_out, ...]."""
    network = module.network
    values = {name: row[i] for name, row in network.neutral().items()}
    _, trainable, state = network.method_of(i).keeping().initialize(w.detach(), values, Draw(module.seed, 0, i))
    return trainable | state
