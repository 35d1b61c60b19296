"""The network that runs under given controls: a module with sites, a method, and the layers that it works on.

Parameters, buffers, method state and controls are arguments of every call; nothing is stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.stateless import _reparametrize_module

from metasched.core.layer import Layer
from metasched.core.randomness import Draw
from metasched.methods.base import Method
from metasched.network.flat import Call, ControlRow, Model, Tensors, of_layers, prefixed, without
from metasched.network.sites import activations
from metasched.network.updating import updated
from metasched.network.weights import Tensor

_DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase, nn.MultiheadAttention)  # from the global generator


@dataclass(frozen=True)
class QuantizedNetwork:
    """A module with its activations replaced, the method, and the layers that it works on.

    Attributes:
        module: the copy; read its initial parameters and buffers from it, run it through the methods here.
        method: the quantization method.
        layers: what is quantized, in the order of the data flow; all controls have one value for each.
        floats: what stays in float though it is a layer or an activation, and why; without what rules, first
            and last say, and without what is quantized by a rule only.
        methods: the method of each layer, where rules give some of them other levels or scales; empty: ``method``.
        keeps: whether all layers keep the weights of the module.
        tensors: everything that could be quantized, with the layer that quantizes it or why it stays in float.
    """

    module: nn.Module
    method: Method
    layers: tuple[Layer, ...]
    floats: tuple[str, ...] = ()
    methods: tuple[Method, ...] = ()
    keeps: bool = False
    tensors: tuple[Tensor, ...] = ()

    def method_of(self, i: int) -> Method:
        """The method of layer i."""
        return self.methods[i] if self.methods else self.method

    @property
    def fits_activations(self) -> bool:
        """Whether trainable tensors of some layer start at first inputs of activations; see fitting.py."""
        return any(method.fits_activations for method in self.methods or (self.method,))

    def relaxed(self, width: float) -> QuantizedNetwork:
        """The network whose methods have their discrete choices smoothed over ``width``."""
        methods = tuple(method.relaxed(width) for method in self.methods)
        return replace(self, method=self.method.relaxed(width), methods=methods)

    @cached_property
    def draws(self) -> bool:
        """Whether a module of torch's here draws from the global generator, as dropout does."""
        return any(isinstance(m, _DRAWING) for m in self.module.modules())

    def describe(self) -> str:
        """One line a layer: what was chosen; then one for each that stays in float."""
        chosen = (
            f"{x.name}: {x.kind}, {x.num_weights} weights of {x.bits:.3g} bits, quantizes {x.quantizes}"
            for x in self.layers
        )
        by_rule = (str(t) for t in self.tensors if t.layer is None and t.excuse == "rule")
        return "\n".join((*chosen, *(f"in float: {line}" for line in (*self.floats, *by_rule))))

    def initialize(
        self, params: Tensors, row: ControlRow, seed: int, kept: Collection[str] = ()
    ) -> tuple[Tensors, Tensors]:
        """Initial parameters and method state, from the float network's parameters and the first step's controls [L].

        The parameters have the method's trainable tensors beside the module's, as ``layer/name``. Layers whose names
        are in ``kept`` keep their weights, also where the method draws new ones.
        """
        params = dict(params)
        state: Tensors = {}
        kept = self._names if self.keeps else kept
        values, neutral = self.values(row), self.values(self.neutral()) if kept else []
        for i, layer in enumerate(self.layers):
            key, method, now = layer.weight_key, self.method_of(i), values[i]
            if layer.name in kept:
                method, now = method.keeping(), neutral[i]
            params[key], trainable, own = method.initialize(params[key], now, Draw(seed, 0, i))
            assert not trainable.keys() & own.keys(), "a tensor is trainable or state"
            params |= prefixed(layer, trainable)
            state |= prefixed(layer, own)
        return params, state

    def neutral(self) -> Tensors:
        """The value of each control, [L], that is nearest to 0."""
        nearest = {c.name: min(max(0.0, c.low), c.high) for c in self.method.controls}
        return {name: self.zero.new_full((len(self.layers),), value) for name, value in nearest.items()}

    @property
    def zero(self) -> torch.Tensor:
        """0-d, with the device of the quantized weights, and their dtype if that is wide enough for controls."""
        weights = [self.module.get_parameter(layer.weight_key) for layer in self.layers]
        dtype = reduce(torch.promote_types, (w.dtype for w in weights), torch.float32)
        return torch.zeros((), dtype=dtype, device=weights[0].device)

    def prepare(self, params: Tensors, state: Tensors, row: ControlRow, seed: int, step: int) -> Tensors:
        """Method state for this step's forward pass under the controls {control: [L]}."""
        prepared: Tensors = {}
        values, trainable = self.values(row), self.trainable(params)
        owns = of_layers({**state, **trainable})
        values = self.method.allocated([params[layer.weight_key] for layer in self.layers], values)
        for i, layer in enumerate(self.layers):
            own = self.method_of(i).prepare(params[layer.weight_key], owns[layer.name], values[i], Draw(seed, step, i))
            prepared |= prefixed(layer, own, but=trainable)
        return prepared

    def model(
        self, call: Call, params: Tensors, state: Tensors, row: ControlRow, seed: int, step: int
    ) -> tuple[Model, torch.Tensor | None]:
        """The network under the controls ({control: [L]}), and the method's penalty (0-d; None for none).

        ``model(*args, **kwargs)`` runs it, by ``call(params, *args, **kwargs)``. If it runs several times, weights are
        quantized once, and activations get the same draws each time.
        """
        trainable = self.trainable(params)
        seen, penalty = without(params, trainable), None
        # the sites have values of their own: derivatives add up in the order in which published ones were added up
        values, site_values = self.values(row), self.values(row)
        owns = of_layers({**state, **trainable})
        for i, layer in enumerate(self.layers):
            key, own, now = layer.weight_key, owns[layer.name], values[i]
            method = self.method_of(i)
            seen[key] = method.weight(params[key], own, now, Draw(seed, step, i))
            term = method.penalty(params[key], own, now)
            if term is not None:
                penalty = term if penalty is None else penalty + term

        def activate(i: int, x: torch.Tensor) -> torch.Tensor:
            return self.method_of(i).activation(x, owns[self.layers[i].name], site_values[i], Draw(seed, step, i))

        return within(activate, call, seen), penalty

    def update(
        self,
        params: Tensors,
        proposed: Tensors,
        state: Tensors,
        row: ControlRow,
        seed: int,
        step: int,
        loss: Callable[[Tensors], torch.Tensor] | None = None,
    ) -> tuple[Tensors, Tensors]:
        """What becomes of the optimizer's proposal, see updating.py: the next parameters and state."""
        return updated(self, params, proposed, state, row, seed, step, loss)

    def harden(self, params: Tensors, state: Tensors, surrogate: float = 0.5) -> Tensors:
        """The deployed parameters of the module: every quantized weight [...] exactly on its level set."""
        trainable = self.trainable(params)
        hardened, owns = without(params, trainable), of_layers({**state, **trainable})
        for i, layer in enumerate(self.layers):
            key = layer.weight_key
            hardened[key] = self.method_of(i).harden(params[key], owns[layer.name], surrogate)
        return hardened

    def hardened_model(self, call: Call, params: Tensors, state: Tensors, surrogate: float = 0.5) -> Model:
        """The deployed network, from parameters and state [...] as for ``harden``: ``model(*args, **kwargs)``."""
        owns = of_layers({**state, **self.trainable(params)})

        def activate(i: int, x: torch.Tensor) -> torch.Tensor:
            return self.method_of(i).harden_activation(x, owns[self.layers[i].name], surrogate)

        return within(activate, call, self.harden(params, state, surrogate))

    def call(self, buffers: Tensors) -> Call:
        """A runner of the module with these buffers [...], which batch normalization updates in place."""

        def call(params: Tensors, *args: Any, **kwargs: Any) -> Any:
            tensors = {**params, **buffers}
            for name, others in self._tied.items():
                if name in tensors:
                    tensors |= dict.fromkeys(others, tensors[name])
            if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
                with _reparametrize_module(self.module, tensors):  # which functional_call refuses then
                    return self.module(*args, **kwargs)
            # torch's own handling of tied weights does not give back those of a module that has two names
            return functional_call(self.module, tensors, args, kwargs, tie_weights=False)

        return call

    def buffers(self) -> Tensors:
        """A copy of the module's initial buffers."""
        return {name: b.detach().clone() for name, b in self.module.named_buffers()}

    def values(self, row: ControlRow) -> list[Tensors]:
        """The values of each layer, control -> 0-d, from those of a step, control -> [L]."""
        unbound = {name: v.unbind() for name, v in row.items()}
        return [{name: v[i] for name, v in unbound.items()} for i in range(len(self.layers))]

    def trainable(self, params: Tensors) -> Tensors:
        """The trainable tensors [...] of the method among the parameters, by their names there: ``layer/name``."""
        return {name: p for name, p in params.items() if name.rpartition("/")[0] in self._names}

    def owns(self, params: Tensors, state: Tensors) -> list[Tensors]:
        """The method's state and trainable tensors [...] of each layer, by their names there."""
        found = of_layers({**state, **self.trainable(params)})
        return [found[layer.name] for layer in self.layers]

    def gradients(self, found: Tensors, state: Tensors) -> Tensors:
        """The gradients [...] as the optimizer gets them; those of stacked runs and their state have N first.

        Each is what is found, times the factor of the method for its trainable tensors.
        """
        scaled = dict(found)
        for layer, own in of_layers(state).items():
            for name, factor in self.method_of(self._names[layer]).gradient_factors(own).items():
                g = found[key := f"{layer}/{name}"]
                scaled[key] = g * factor.reshape((*factor.shape, *[1] * (g.dim() - factor.dim())))
        return scaled

    @cached_property
    def _tied(self) -> dict[str, tuple[str, ...]]:
        """Name of a parameter or buffer -> its other names, of other modules; without those that have none."""
        names: defaultdict[int, list[str]] = defaultdict(list)
        for module_name, m in self.module.named_modules():
            for key, tensor in (*m._parameters.items(), *m._buffers.items()):
                if tensor is not None:
                    names[id(tensor)].append(f"{module_name}.{key}".lstrip("."))
        return {first: tuple(others) for first, *others in names.values() if others}

    @cached_property
    def _names(self) -> dict[str, int]:
        return {layer.name: i for i, layer in enumerate(self.layers)}


def within(activate: Callable[[int, torch.Tensor], torch.Tensor], call: Call, params: Tensors) -> Model:
    """``call`` with these parameters, each time with these activations."""

    def model(*args: Any, **kwargs: Any) -> Any:
        with activations(activate):
            return call(params, *args, **kwargs)

    return model
