"""``quantize(model, method)``: an ordinary module and a method make a network that runs under given controls.

The module itself stays as it is: a copy has the sites (see sites.py). Parameters, buffers, method state and controls
are arguments of every call; nothing is stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.stateless import _reparametrize_module

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.core.randomness import Draw
from metasched.methods.base import Evaluating, Method
from metasched.network.choosing import choose
from metasched.network.flow import Example
from metasched.network.recipe import Recipe
from metasched.network.sites import activations
from metasched.network.weights import Tensor

Tensors = dict[str, torch.Tensor]
ControlRow = Mapping[str, torch.Tensor]  # control -> [L], the controls of one step
Call = Callable[..., Any]  # call(params, *args, **kwargs) runs a module with these parameters
Model = Callable[..., Any]  # model(*args, **kwargs) runs a network as it is

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
        """Whether trainable tensors of some layer start at first inputs of activations; see ``fit``."""
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
        values, neutral = self._values(row), self._values(self.neutral()) if kept else []
        for i, layer in enumerate(self.layers):
            key, method, now = layer.weight_key, self.method_of(i), values[i]
            if layer.name in kept:
                method, now = method.keeping(), neutral[i]
            params[key], trainable, own = method.initialize(params[key], now, Draw(seed, 0, i))
            assert not trainable.keys() & own.keys(), "a tensor is trainable or state"
            params |= _prefixed(layer, trainable)
            state |= _prefixed(layer, own)
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

    @torch.no_grad()
    def fit(
        self, call: Call, params: Tensors, state: Tensors, run: Callable[[Model], object]
    ) -> tuple[Tensors, Tensors]:
        """The trainable tensors [...] that start at first inputs of activations, and their state, as ``layer/name``.

        Args:
            call: runs the module; see ``call``.
            params, state: as ``initialize`` gives them, [...] each. Where a hypergradient is computed they must not
                depend on the controls: pass those of ``neutral``.
            run: runs the model that it gets on a first batch.

        Raises:
            MetaschedError: the batch does not reach a layer whose activation is quantized.
        """
        owns = _of_layers({**state, **self.trainable(params)})
        found: dict[str, tuple[Tensors, Tensors]] = {}

        def activate(i: int, x: torch.Tensor) -> torch.Tensor:
            name = self.layers[i].name
            if name not in found:
                found[name] = self.method_of(i).fit_activation(x, owns[name])
            return self.method_of(i).harden_activation(x, {**owns[name], **found[name][0], **found[name][1]}, 0.5)

        run(_within(activate, call, self.harden(params, state)))
        for layer in self.layers:
            if layer.quantizes == "weight+activation" and layer.name not in found:
                problem = "is not reached by the first batch, at which the scale of its activation starts"
                raise MetaschedError(f"model.{layer.name}", problem, "set method.activation_scale to a number")
        trainable, own = ({f"{name}/{key}": t for name, f in found.items() for key, t in f[i].items()} for i in (0, 1))
        assert not trainable.keys() & params.keys(), "a tensor is fitted that is there already"
        return trainable, own

    def prepare(self, params: Tensors, state: Tensors, row: ControlRow, seed: int, step: int) -> Tensors:
        """Method state for this step's forward pass under the controls {control: [L]}."""
        prepared: Tensors = {}
        values, trainable = self._values(row), self.trainable(params)
        owns = _of_layers({**state, **trainable})
        for i, layer in enumerate(self.layers):
            own = self.method_of(i).prepare(params[layer.weight_key], owns[layer.name], values[i], Draw(seed, step, i))
            prepared |= _prefixed(layer, own, without=trainable)
        return prepared

    def model(
        self, call: Call, params: Tensors, state: Tensors, row: ControlRow, seed: int, step: int
    ) -> tuple[Model, torch.Tensor | None]:
        """The network under the controls ({control: [L]}), and the method's penalty (0-d; None for none).

        ``model(*args, **kwargs)`` runs it, by ``call(params, *args, **kwargs)``. If it runs several times, weights are
        quantized once, and activations get the same draws each time.
        """
        trainable = self.trainable(params)
        seen, penalty = _without(params, trainable), None
        # the sites have values of their own: derivatives add up in the order in which published ones were added up
        values, site_values = self._values(row), self._values(row)
        owns = _of_layers({**state, **trainable})
        for i, layer in enumerate(self.layers):
            key, own, now = layer.weight_key, owns[layer.name], values[i]
            method = self.method_of(i)
            seen[key] = method.weight(params[key], own, now, Draw(seed, step, i))
            term = method.penalty(params[key], own, now)
            if term is not None:
                penalty = term if penalty is None else penalty + term

        def activate(i: int, x: torch.Tensor) -> torch.Tensor:
            return self.method_of(i).activation(x, owns[self.layers[i].name], site_values[i], Draw(seed, step, i))

        return _within(activate, call, seen), penalty

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
        """What becomes of the optimizer's proposal.

        Args:
            params, proposed, state, row, seed, step: of this step.
            loss: of its batch at other parameters, 0-d, without a graph; for methods that evaluate it.

        Raises:
            MetaschedError: the method evaluates the loss, and there is none.
        """
        if isinstance(self.method, Evaluating):
            return self._update_evaluated(params, proposed, state, row, seed, step, loss)
        settled, updated = dict(proposed), {}
        values, trainable = self._values(row), self.trainable(params)
        owns, news = _of_layers({**state, **trainable}), _of_layers(self.trainable(proposed))
        for i, layer in enumerate(self.layers):
            key = layer.weight_key
            settled[key], own = self.method_of(i).update(
                params[key], proposed[key], owns[layer.name], values[i], Draw(seed, step, i)
            )
            updated |= _prefixed(layer, own, without=trainable)
            if layer.name in news:
                settled |= _prefixed(
                    layer, self.method_of(i).update_trainable(owns[layer.name], news[layer.name], values[i])
                )
        return settled, updated

    def _update_evaluated(
        self,
        params: Tensors,
        proposed: Tensors,
        state: Tensors,
        row: ControlRow,
        seed: int,
        step: int,
        loss: Callable[[Tensors], torch.Tensor] | None,
    ) -> tuple[Tensors, Tensors]:
        """``update``, layer by layer, each at the parameters that those before it have left."""
        if loss is None:
            problem = "batch needs the loss of the batch at other weights, which only metasched's own steps evaluate"
            raise MetaschedError("method.energy", problem, "set it to first_order, or meta.estimator to sweep")
        settled, updated, moved = dict(proposed), {}, {name: p.detach() for name, p in params.items()}
        here, values, trainable = loss(moved), self._values(row), self.trainable(params)
        owns, news = _of_layers({**state, **trainable}), _of_layers(self.trainable(proposed))
        for i, layer in enumerate(self.layers):
            key, method = layer.weight_key, self.method_of(i)
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
            updated |= _prefixed(layer, own, without=trainable)
            if layer.name in news:
                settled |= _prefixed(
                    layer, self.method_of(i).update_trainable(owns[layer.name], news[layer.name], values[i])
                )
        return settled, updated

    def harden(self, params: Tensors, state: Tensors, surrogate: float = 0.5) -> Tensors:
        """The deployed parameters of the module: every quantized weight [...] exactly on its level set."""
        trainable = self.trainable(params)
        hardened, owns = _without(params, trainable), _of_layers({**state, **trainable})
        for i, layer in enumerate(self.layers):
            key = layer.weight_key
            hardened[key] = self.method_of(i).harden(params[key], owns[layer.name], surrogate)
        return hardened

    def hardened_model(self, call: Call, params: Tensors, state: Tensors, surrogate: float = 0.5) -> Model:
        """The deployed network, from parameters and state [...] as for ``harden``: ``model(*args, **kwargs)``."""
        owns = _of_layers({**state, **self.trainable(params)})

        def activate(i: int, x: torch.Tensor) -> torch.Tensor:
            return self.method_of(i).harden_activation(x, owns[self.layers[i].name], surrogate)

        return _within(activate, call, self.harden(params, state, surrogate))

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

    def _values(self, row: ControlRow) -> list[Tensors]:
        """The values of each layer, control -> 0-d, from those of a step, control -> [L]."""
        unbound = {name: v.unbind() for name, v in row.items()}
        return [{name: v[i] for name, v in unbound.items()} for i in range(len(self.layers))]

    def trainable(self, params: Tensors) -> Tensors:
        """The trainable tensors [...] of the method among the parameters, by their names there: ``layer/name``."""
        return {name: p for name, p in params.items() if name.rpartition("/")[0] in self._names}

    def owns(self, params: Tensors, state: Tensors) -> list[Tensors]:
        """The method's state and trainable tensors [...] of each layer, by their names there."""
        found = _of_layers({**state, **self.trainable(params)})
        return [found[layer.name] for layer in self.layers]

    def gradients(self, found: Tensors, state: Tensors) -> Tensors:
        """The gradients [...] as the optimizer gets them; those of stacked runs and their state have N first.

        Each is what is found, times the factor of the method for its trainable tensors.
        """
        scaled = dict(found)
        for layer, own in _of_layers(state).items():
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


def quantize(
    model: nn.Module, recipe: Recipe | Method, example: Example, *, first: bool | None = None, last: bool | None = None
) -> QuantizedNetwork:
    """Wrap a model: choose its layers and say what each quantizes (see choosing.py).

    Args:
        model: any module; it is copied, and what is in eval mode in a model in training mode stays there.
        recipe: what quantizes them; a method is a recipe without rules, which may draw the weights anew.
        example: an input batch, used for one pass in eval mode: a tensor [N, ...], a tuple of arguments, a dict of
            keyword arguments, or a function of the module that runs it (of several passes the first one counts).
        first, last: with a method, whether the first (default: yes) and the last layer (no) are quantized too.

    Raises:
        MetaschedError: nothing to quantize, a model that is a single layer, a layer that shares its weight with one
            that is not quantized, a computed weight, or a rule that matches nothing.
    """
    if isinstance(recipe, Method):
        recipe = Recipe(recipe, first=first is not False, last=last is True, redraw=True)
    elif first is not None or last is not None:
        raise MetaschedError("quantize", "first and last are of the recipe", "set them there: Recipe(..., last=True)")
    found = choose(model, recipe, example)
    floats = tuple(str(t) for t in found.tensors if t.layer is None and not t.excuse)
    keeps = not recipe.redraw
    return QuantizedNetwork(found.module, recipe.build(), found.layers, floats, found.methods, keeps, found.tensors)


def _within(activate: Callable[[int, torch.Tensor], torch.Tensor], call: Call, params: Tensors) -> Model:
    """``call`` with these parameters, each time with these activations."""

    def model(*args: Any, **kwargs: Any) -> Any:
        with activations(activate):
            return call(params, *args, **kwargs)

    return model


def _of_layers(state: Tensors) -> Mapping[str, Tensors]:
    """Each layer's own part of the method state, by its name; of a layer without one, nothing."""
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
    """The row of one step, control -> [L], out of a whole run's, control -> [T, L]."""
    return {name: values[step] for name, values in controls.items()}


def rows_of(controls: Mapping[str, torch.Tensor], steps: range) -> Tensors:
    """The rows of some steps, control -> [len(steps), L], out of a whole run's, control -> [T, L]."""
    return {name: values[steps.start : steps.stop] for name, values in controls.items()}
