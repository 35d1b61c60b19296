"""``quantize(model, method)``: turns an ordinary module into a network that runs under given controls.

The model is copied; in the copy, each quantized activation is replaced by a site whose function is set by the running
call. Parameters, buffers, method state and controls are arguments of every call; nothing is stored.

Shapes: L layers; a weight is [C_out, ...]; controls of one step are [L] per name. ``Tensors`` maps names to tensors;
the names of method state and trainable tensors are ``layer/name``. Any floating dtype works; tests use float64.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.func import functional_call

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer, weight_key
from metasched.core.randomness import Draw
from metasched.methods.base import Evaluating, Method

Tensors = dict[str, torch.Tensor]
ControlRows = Mapping[str, torch.Tensor]  # control -> [L], the values of one step

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh)
_DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase, nn.MultiheadAttention)  # from the global generator
_activate: ContextVar[Callable[[int, torch.Tensor], torch.Tensor]] = ContextVar("activate")


class ActivationSite(nn.Module):
    """Replaces an activation module; ``activations`` sets the function that it computes."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output [...] for an input [...] under the running call; float32 under autocast."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()  # noise narrower than the resolution of bfloat16 would have no effect
        return _activate.get()(self.layer, x)


@contextmanager
def activations(function: Callable[[int, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside this context, the sites compute ``function(layer index, input)``."""
    token = _activate.set(function)
    try:
        yield
    finally:
        _activate.reset(token)


@dataclass(frozen=True)
class QuantizedNetwork:
    """A module with sites in place of activations, the method, and the quantized layers.

    Attributes:
        module: the copy of the model; it holds the initial parameters and buffers, and runs through the methods below.
        method: the quantization method.
        layers: the L quantized layers, in the order of the data flow; each control has one value per layer.
    """

    module: nn.Module
    method: Method
    layers: tuple[Layer, ...]

    @cached_property
    def draws(self) -> bool:
        """Whether the module contains a torch module, such as dropout, that draws from the global generator."""
        return any(isinstance(m, _DRAWING) for m in self.module.modules())

    def describe(self) -> str:
        """A table of the quantized layers, one line each."""
        return "\n".join(
            f"{x.name}: {x.kind}, {x.num_weights} weights of {x.bits:.3g} bits, quantizes {x.quantizes}"
            for x in self.layers
        )

    def initialize(self, params: Tensors, controls: ControlRows, seed: int) -> tuple[Tensors, Tensors]:
        """Initial parameters and method state.

        Args:
            params: parameters of the float network by name; weights are [C_out, ...].
            controls: control -> [L], at the first step.
            seed: seed of the random numbers.

        Returns:
            the parameters, including the method's trainable tensors as ``layer/name``, and the method state.
        """
        params = dict(params)
        state: Tensors = {}
        each = self._rows(controls)
        for i, layer in enumerate(self.layers):
            key = layer.weight_key
            params[key], trainable, own = self.method.initialize(params[key], each[i], Draw(seed, 0, i))
            assert not trainable.keys() & own.keys(), "a name is both a trainable tensor and a state"
            params |= _prefixed(layer, trainable)
            state |= _prefixed(layer, own)
        return params, state

    def prepare(self, params: Tensors, state: Tensors, controls: ControlRows, seed: int, step: int) -> Tensors:
        """Method state for the forward pass of this step; arguments as in ``forward``, controls [L]."""
        prepared: Tensors = {}
        each, trainable = self._rows(controls), self.trainable(params)
        owns = _of_layers({**state, **trainable})
        for i, layer in enumerate(self.layers):
            own = self.method.prepare(params[layer.weight_key], owns[layer.name], each[i], Draw(seed, step, i))
            prepared |= _prefixed(layer, own, without=trainable)
        return prepared

    def forward(
        self,
        call: Callable[[Tensors, torch.Tensor], torch.Tensor],
        params: Tensors,
        state: Tensors,
        controls: ControlRows,
        x: torch.Tensor,
        seed: int,
        step: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Outputs of the quantized network in training, and the method's penalty.

        Args:
            call: (parameters of the module, x) -> outputs; runs the module (see the method ``call``).
            params: parameters, including the method's trainable tensors.
            state: method state of this step, from ``prepare``.
            controls: control -> [L], at this step.
            x: input of the model, [N, ...].
            seed, step: random numbers are a function of both.

        Returns:
            outputs of the model, [N, ...], and the penalty, 0-d, or None if the method has none.
        """
        trainable = self.trainable(params)
        seen, penalty = _without(params, trainable), None
        # separate rows for the sites keep the order in which derivatives are summed, and so the bits of old results
        each, of_sites = self._rows(controls), self._rows(controls)
        owns = _of_layers({**state, **trainable})
        for i, layer in enumerate(self.layers):
            key, own, row = layer.weight_key, owns[layer.name], each[i]
            seen[key] = self.method.weight(params[key], own, row, Draw(seed, step, i))
            term = self.method.penalty(params[key], own, row)
            if term is not None:
                penalty = term if penalty is None else penalty + term

        def activate(i: int, x: torch.Tensor) -> torch.Tensor:
            return self.method.activation(x, owns[self.layers[i].name], of_sites[i], Draw(seed, step, i))

        with activations(activate):
            return call(seen, x), penalty

    def update(
        self,
        params: Tensors,
        proposed: Tensors,
        state: Tensors,
        controls: ControlRows,
        seed: int,
        step: int,
        loss: Callable[[Tensors], torch.Tensor] | None = None,
    ) -> tuple[Tensors, Tensors]:
        """Parameters and method state after a step, from the optimizer's proposal.

        Args:
            params: parameters before the optimizer's step; weights are [C_out, ...].
            proposed: parameters after it, with the same names and shapes.
            state, controls, seed, step: as in ``forward``.
            loss: parameters -> loss of the batch, 0-d, without a graph; for methods that evaluate it.

        Raises:
            MetaschedError: the method evaluates the loss, but ``loss`` is None.
        """
        if isinstance(self.method, Evaluating):
            return self._update_evaluated(self.method, params, proposed, state, controls, seed, step, loss)
        settled, updated = dict(proposed), {}
        each, trainable = self._rows(controls), self.trainable(params)
        owns, news = _of_layers({**state, **trainable}), _of_layers(self.trainable(proposed))
        for i, layer in enumerate(self.layers):
            key = layer.weight_key
            settled[key], own = self.method.update(
                params[key], proposed[key], owns[layer.name], each[i], Draw(seed, step, i)
            )
            updated |= _prefixed(layer, own, without=trainable)
            if layer.name in news:
                settled |= _prefixed(layer, self.method.update_trainable(owns[layer.name], news[layer.name], each[i]))
        return settled, updated

    def _update_evaluated(
        self,
        method: Evaluating,
        params: Tensors,
        proposed: Tensors,
        state: Tensors,
        controls: ControlRows,
        seed: int,
        step: int,
        loss: Callable[[Tensors], torch.Tensor] | None,
    ) -> tuple[Tensors, Tensors]:
        """``update`` for a method that evaluates the loss: each layer at the updated parameters of those before it."""
        if loss is None:
            problem = "batch needs the loss at other weights, which this loop does not evaluate"
            raise MetaschedError("method.energy", problem, "set it to first_order, or meta.estimator to sweep")
        settled, updated, moved = dict(proposed), {}, {name: p.detach() for name, p in params.items()}
        here, each, trainable = loss(moved), self._rows(controls), self.trainable(params)
        owns, news = _of_layers({**state, **trainable}), _of_layers(self.trainable(proposed))
        for i, layer in enumerate(self.layers):
            key = layer.weight_key
            settled[key], own, here = method.update_evaluated(
                params[key],
                proposed[key],
                owns[layer.name],
                each[i],
                Draw(seed, step, i),
                lambda w, key=key: loss({**moved, key: w.detach()}),
                here,
            )
            moved[key] = settled[key].detach()
            updated |= _prefixed(layer, own, without=trainable)
            if layer.name in news:
                settled |= _prefixed(layer, self.method.update_trainable(owns[layer.name], news[layer.name], each[i]))
        return settled, updated

    def harden(self, params: Tensors, state: Tensors, surrogate: float = 0.5) -> Tensors:
        """The deployed parameters of the module.

        Args:
            params: parameters, including the method's trainable tensors; weights are [C_out, ...].
            state: method state.
            surrogate: half-width in quanta of the uniform noise whose density is the derivative, > 0.

        Returns:
            the parameters of the module by name; every element of a quantized weight is a level times its scale.
        """
        trainable = self.trainable(params)
        hardened, owns = _without(params, trainable), _of_layers({**state, **trainable})
        for layer in self.layers:
            key = layer.weight_key
            hardened[key] = self.method.harden(params[key], owns[layer.name], surrogate)
        return hardened

    def forward_hardened(
        self,
        call: Callable[[Tensors, torch.Tensor], torch.Tensor],
        hardened: Tensors,
        x: torch.Tensor,
        surrogate: float = 0.5,
    ) -> torch.Tensor:
        """Outputs of the deployed network, [N, ...].

        Args:
            call: as in ``forward``.
            hardened: result of ``harden``.
            x: input of the model, [N, ...].
            surrogate: as in ``harden``, for activations.
        """
        with activations(lambda i, x: self.method.harden_activation(x, surrogate)):
            return call(hardened, x)

    def call(self, buffers: Tensors) -> Callable[[Tensors, torch.Tensor], torch.Tensor]:
        """(parameters, x [N, ...]) -> outputs [N, ...]; batch normalization updates ``buffers`` in place."""
        return lambda params, x: functional_call(self.module, {**params, **buffers}, (x,))

    def buffers(self) -> Tensors:
        """A copy of the module's initial buffers."""
        return {name: b.detach().clone() for name, b in self.module.named_buffers()}

    def _rows(self, controls: ControlRows) -> list[Tensors]:
        """The controls of each layer: control -> 0-d, from control -> [L]."""
        values = {name: v.unbind() for name, v in controls.items()}
        return [{name: v[i] for name, v in values.items()} for i in range(len(self.layers))]

    def trainable(self, params: Tensors) -> Tensors:
        """The method's trainable tensors among the parameters: ``layer/name`` -> tensor [...]."""
        return {name: p for name, p in params.items() if name.rpartition("/")[0] in self._names}

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(layer.name for layer in self.layers)


def quantize(
    model: nn.Module, method: Method, example: torch.Tensor, *, first: bool = True, last: bool = False
) -> QuantizedNetwork:
    """Quantizes the convolutions and linear layers of a model, and the activations after them.

    Layers are in the order in which a forward pass of ``example`` runs them. An activation module belongs to the last
    layer before it, if that layer does not have one yet.

    Args:
        model: a module whose activations are modules (not functional calls) that run once per pass; it is copied.
        method: the quantization method.
        example: input batch [N, ...] for one forward pass in eval mode.
        first, last: whether the first and the last layer are quantized.

    Raises:
        MetaschedError: no layer is left, a layer or an activation runs more than once per pass, the model is a single
            layer, or layers share a weight.
    """
    module = copy.deepcopy(model)
    ran = _execution_order(module, example)
    weighted = [name for name, m in ran if isinstance(m, _WEIGHTED)]
    chosen = weighted[0 if first else 1 : len(weighted) if last else len(weighted) - 1]
    if not chosen:
        raise MetaschedError("quantize", "the model has no layer left to quantize", "set quantize.last or first: true")
    _refuse_unnamed(module, chosen)
    followed: dict[str, str] = {}
    current = None
    for name, m in ran:
        if isinstance(m, _WEIGHTED):
            current = name
        elif current in chosen and current not in followed:
            followed[current] = name
    layers = []
    for i, name in enumerate(chosen):
        own = module.get_submodule(name)
        weight: torch.Tensor = own.weight  # pyright: ignore[reportAssignmentType]
        site = method.quantizes == "weight+activation" and name in followed
        if site:
            module.set_submodule(followed[name], ActivationSite(i))
        layers.append(
            Layer(
                name=name,
                depth=i / (len(chosen) - 1) if len(chosen) > 1 else 0.0,
                kind="linear" if isinstance(own, nn.Linear) else "conv",
                quantizes="weight+activation" if site else "weight",
                fan_in=weight[0].numel(),
                num_weights=weight.numel(),
                bits=method.bits,
            )
        )
    module.train()
    return QuantizedNetwork(module, method, tuple(layers))


def _refuse_unnamed(module: nn.Module, chosen: list[str]) -> None:
    """Raises unless each chosen layer owns a parameter ``weight``: parameters are identified by name."""
    if "" in chosen:
        raise MetaschedError("model", "is a single layer", "wrap it: torch.nn.Sequential(layer)")
    own = {name for name, _ in module.named_parameters()}
    for name in chosen:
        if weight_key(name) not in own:
            problem = "shares its weight with another layer, or its weight is parametrized"
            raise MetaschedError(f"model.{name}", problem, "give each quantized layer its own plain weight")


def _execution_order(module: nn.Module, example: torch.Tensor) -> list[tuple[str, nn.Module]]:
    """The layers with weights and the activations, in the order in which they run."""
    ran: list[tuple[str, nn.Module]] = []
    hooks = [
        m.register_forward_hook(lambda m, _in, _out, name=name: ran.append((name, m)))
        for name, m in module.named_modules()
        if isinstance(m, _WEIGHTED + _ACTIVATIONS)
    ]
    module.eval()
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    names = [name for name, _ in ran]
    for name in names:
        if names.count(name) > 1:
            raise MetaschedError(
                f"model.{name}", "runs more than once in a forward pass", "use a separate module for each use"
            )
    return ran


def _of_layers(state: Tensors) -> Mapping[str, Tensors]:
    """Layer name -> the layer's tensors by name; an empty dict for a layer without any."""
    owns: defaultdict[str, Tensors] = defaultdict(dict)
    for key, value in state.items():
        layer, _, name = key.rpartition("/")
        owns[layer][name] = value
    return owns


def _prefixed(layer: Layer, own: Tensors, without: Tensors | None = None) -> Tensors:
    return _without({f"{layer.name}/{key}": value for key, value in own.items()}, without or {})


def _without(tensors: Tensors, others: Tensors) -> Tensors:
    return {name: t for name, t in tensors.items() if name not in others}


def rows(controls: Mapping[str, torch.Tensor], step: int) -> Tensors:
    """The values of one step, control -> [L], from those of a whole run, control -> [T, L]."""
    return {name: values[step] for name, values in controls.items()}


def rows_of(controls: Mapping[str, torch.Tensor], steps: range) -> Tensors:
    """The controls of some steps, control -> [len(steps), L], out of a whole run's, control -> [T, L]."""
    return {name: values[steps.start : steps.stop] for name, values in controls.items()}
