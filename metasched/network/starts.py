"""Where scales start in one's own loop: at the weights of the first step, also if those were loaded or are zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Method
from metasched.methods.discrete import Discrete
from metasched.methods.oriented import Oriented
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
            for i, (name, w) in enumerate(weights.items()):
                method = module.network.method_of(i)
                scale = tensors.get(f"{name}/scale")
                if scale is not None and w.requires_grad and (empty := zeros(method, w.detach(), scale)) is not None:
                    self._dead[name] = empty
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
            own = {key.rpartition("/")[2]: t for key, t in tensors.items() if key.rpartition("/")[0] == layer.name}
            method = module.network.method_of(i)
            if method.keeping() != method and levels_used(method, w, own) > 1:
                continue
            for name, value in fitting_state(method, w, module.seed, i).items():
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
            fitted = fitting_state(module.network.method_of(i), tensors[layer.weight_key], module.seed, i)["scale"]
            scale.copy_(torch.where(empty.to(scale.device), fitted, scale))


def zeros(method: Method, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor | None:
    """Where a scale fits nothing but zeros of w [C_out, ...], in the shape of the scale; None where there are none."""
    w = method.turned(w) if isinstance(method, Oriented) else w
    empty = (w.reshape(scale.numel(), -1) == 0).all(1)
    return empty.reshape(scale.shape) if bool(empty.any()) else None


def levels_used(method: Method, w: torch.Tensor, own: Mapping[str, torch.Tensor | None]) -> int:
    """How many different values the hard weight of w [C_out, ...] has, with the tensors of its layer."""
    known = {name: t for name, t in own.items() if t is not None}
    return len(method.harden(w.detach(), known, 0.5).unique())


def fitting_state(method: Method, w: torch.Tensor, seed: int, index: int) -> dict[str, torch.Tensor]:
    """What a method starts with for a layer that keeps its weight w [C_out, ...]: state and trainable tensors."""
    like = w.new_zeros((), dtype=torch.promote_types(w.dtype, torch.float32))
    values = {c.name: like.new_full((), min(max(0.0, c.low), c.high)) for c in method.controls}
    _, trainable, state = method.keeping().initialize(w.detach(), values, Draw(seed, 0, index))
    return trainable | state
