"""Quantizers that live in the modules of a network: each quantized layer has one as a submodule, and computes with it.

The class of a layer becomes a subclass of its own in which the weight is a property: reading it gives the quantized
weight, wherever the forward pass reads it. The parameter itself keeps its name, for optimizers, state dicts and casts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.core.randomness import Draw
from metasched.methods.base import Method, State
from metasched.methods.discrete import Discrete
from metasched.network.damping import damped
from metasched.network.identity import layer_identity, same
from metasched.network.sharding import sharded
from metasched.network.sites import Quantized
from metasched.network.starts import fitting_state, levels_used
from metasched.network.watching import Watch
from metasched.quantizers.constants import traced

_IDENTITY = "identity"
_CHANGED = 0.01  # by which share of its magnitudes a weight tensor has changed, more than a cast changes it
_SURROGATE = 0.5  # half-width in quanta of the derivative in eval mode


class Quantizer(nn.Module):
    """The method on one layer: its state as buffers, its trainable tensors as parameters, and this step's controls.

    In training mode it computes what the method computes under the controls, in eval mode the hard network.

    Attributes:
        controls: control -> 0-d tensor, at this step.
        draw: the random numbers of this step.
        before: the layer's weight at the start of the step, [C_out, ...]; None for methods that do not need it.
        started: whether a step has been taken.
        loaded: whether a state was loaded since the player last looked.
        watch: of the module and its player, which is told of passes in training mode; None before there is a player.
    """

    identity: torch.Tensor

    def __init__(
        self,
        method: Method,
        layer: Layer,
        index: int,
        seed: int,
        state: State,
        trainable: State,
        fitted: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.method, self.layer, self.index, self.seed = method, layer, index, seed
        for name, value in trainable.items():  # at least 1-d: FSDP2 shards no scalars
            self.register_parameter(name, nn.Parameter(value.detach().clone().reshape(value.shape or (1,))))
        self._scalars = frozenset(name for name, value in trainable.items() if not value.dim())
        for name, value in state.items():
            self.register_buffer(name, value.detach().clone())
        self.register_buffer(_IDENTITY, layer_identity(method, layer, state, trainable))
        self.controls: dict[str, torch.Tensor] = {}
        self.draw = Draw(seed, 0, index)
        self.before: torch.Tensor | None = None
        self.watch: Watch | None = None
        self.started = self.loaded = self._weights_alone = self._unfitted = False
        self._fitted = fitted
        self._start: tuple[float, float] | None = None  # of the weights that the scales fit, before the first pass

    def weight(self, w: torch.Tensor) -> torch.Tensor:
        """What the forward pass sees of the weight w [C_out, ...]."""
        if self._start is not None and self.training and not traced():
            self._fit_changed(w)
        if self.training:
            if self.watch is not None:
                self.watch.pass_of(self, w)
            return self.method.weight(w, self.tensors(), self.controls, self.draw)
        return self.method.harden(w, self.tensors(), _SURROGATE)

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer's activation puts out for an input x [N, ...]."""
        if self._unfitted and self.training and not traced():
            self._fit(x)
        if self.training:
            return self.method.activation(x, self.tensors(), self.controls, self.draw)
        return self.method.harden_activation(x, self.tensors(), _SURROGATE)

    def penalty(self, w: torch.Tensor) -> torch.Tensor | None:
        """The method's penalty for the weight w [C_out, ...], 0-d; None for none."""
        return self.method.penalty(w, self.tensors(), self.controls)

    def tensors(self) -> State:
        """The state and the trainable tensors of the layer; gradients of these are multiplied by their factors."""
        found = self.state()
        if self._parameters:
            factors, trainable = self.method.gradient_factors(found), self.trainable()
            for name, p in trainable.items():
                found[name] = damped(p, factors[name]) if name in factors and p.requires_grad else p
        return found

    def trainable(self, read: Callable[[torch.Tensor], torch.Tensor] = lambda p: p) -> State:
        """The trainable tensors of the layer, with the method's shapes, each as ``read`` gives it."""
        own = {name: read(p) for name, p in self._parameters.items() if p is not None}
        return {name: p.reshape(()) if name in self._scalars else p for name, p in own.items()}

    def state(self) -> State:
        """The method's state of the layer."""
        return {name: b for name, b in self._buffers.items() if name != _IDENTITY and b is not None}

    @torch.no_grad()
    def refit(self, w: torch.Tensor) -> None:
        """Fits the scales to the weight w [C_out, ...]; those of activations at the next input."""
        known = {**self.state(), **self._parameters}
        if self.method.keeping() != self.method and levels_used(self.method, w, known) > 1:
            return
        for name, value in fitting_state(self.method, w, self.seed, self.index).items():
            known[name].copy_(value)  # pyright: ignore[reportOptionalMemberAccess]
        self._unfitted = bool(self._fitted)

    @torch.no_grad()
    def _fit_changed(self, w: torch.Tensor) -> None:
        """At the first pass: fits the scales to weights that were written into the module after it was prepared."""
        start, self._start = self._start, None
        assert start is not None
        if self.started or sharded(w) or isinstance(self.method, Discrete):
            return
        if any(abs(now - was) > _CHANGED * start[1] for now, was in zip(_sums(w), start, strict=True)):
            self.refit(w.detach())
            if self.before is not None:
                self.before = w.detach().clone()

    @torch.no_grad()
    def _fit(self, x: torch.Tensor) -> None:
        trainable, _ = self.method.fit_activation(x.detach(), self.tensors())
        for name, value in trainable.items():
            self.get_parameter(name).copy_(value)
        self._unfitted = False

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Quantizer:
        super()._apply(fn, recurse)
        self.before = None if self.before is None else fn(self.before)
        self.controls = {name: t.to(fn(t).device) for name, t in self.controls.items()}  # their dtype is their own
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        key = prefix + _IDENTITY
        if key in state_dict and not same(state_dict[key], self.identity):
            problem = f"has a state of other levels or scales than those of {self.layer.name}"
            raise MetaschedError("state_dict", problem, "prepare the model as it was when the state was saved")
        self._weights_alone = not any(name.endswith(f"_quantizer.{_IDENTITY}") for name in state_dict)
        if self._weights_alone:  # of the float network: nothing of this is missing
            own = {prefix + name: t for name, t in {**self._buffers, **self._parameters}.items() if t is not None}
            state_dict = {**state_dict, **own}
        self._start = None
        super()._load_from_state_dict(state_dict, prefix, *args)  # pyright: ignore[reportArgumentType]


class Running:
    """What the activation sites of a network ask: the quantizers of its layers, by index."""

    def __init__(self, quantizers: list[Quantizer]) -> None:
        self.quantizers = quantizers

    def activate_again(self) -> Callable[[int, torch.Tensor], torch.Tensor]:
        """``activate(layer index, input)``."""
        return self.activate

    def activate(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """The activation [N, ...] of a layer for its input."""
        return self.quantizers[layer].activation(x)


def host(owner: nn.Module, key: str, quantizer: Quantizer) -> None:
    """Lets a module see its parameter ``key`` through a quantizer, which becomes its submodule ``key_quantizer``.

    In a pickle it is the module's own class with that property.
    """
    owner.add_module(_child(key), quantizer)
    p = owner._parameters[key]
    assert p is not None
    quantizer._start = _sums(p)
    base, keys = (owner._base, owner._keys) if isinstance(owner, _Hosting) else (type(owner), ())
    owner.__class__ = _class_of(base, (*keys, key))  # pyright: ignore[reportAttributeAccessIssue]
    if not keys:
        owner.register_load_state_dict_post_hook(_after_loading)


def unhost(owner: nn.Module, key: str, p: nn.Parameter) -> None:
    """Makes a module what it was before ``host``, with another parameter."""
    assert isinstance(owner, _Hosting)
    del owner._modules[_child(key)]
    owner._parameters[key] = p
    keys = tuple(other for other in owner._keys if other != key)
    if not keys:
        hooks = owner._load_state_dict_post_hooks
        for number in [n for n, hook in hooks.items() if hook is _after_loading]:
            del hooks[number]
    owner.__class__ = _class_of(owner._base, keys) if keys else owner._base  # pyright: ignore[reportAttributeAccessIssue]


class _Hosting(Quantized):
    """A module some of whose parameters are read through quantizers."""

    _base: type[nn.Module]
    _keys: tuple[str, ...]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in torch, but for the parameters that pruning makes of a quantized weight."""
        if name in {f"{key}_orig" for key in self._keys}:
            raise _changed(self, name.removesuffix("_orig"))
        super().register_parameter(name, param)

    def __reduce_ex__(self, protocol: Any) -> Any:
        _, _, *rest = super().__reduce_ex__(max(int(protocol), 2))
        return _blank, (self._base, self._keys), *rest


_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def _class_of(base: type[nn.Module], keys: tuple[str, ...]) -> type[nn.Module]:
    if (base, keys) not in _CLASSES:
        seen = {key: property(_reader(key)) for key in keys}
        body = {"_base": base, "_keys": keys, "__module__": base.__module__, "__qualname__": base.__qualname__, **seen}
        _CLASSES[base, keys] = type(base.__name__, (_Hosting, base), body)
    return _CLASSES[base, keys]


def _blank(base: type[nn.Module], keys: tuple[str, ...]) -> nn.Module:
    made = _class_of(base, keys)
    return made.__new__(made)


def _sums(w: torch.Tensor) -> tuple[float, float]:
    """The sum of w [C_out, ...] and that of its magnitudes, which casts and moves hardly change."""
    w = w.detach().double()
    return float(w.sum()), float(w.abs().sum())


def _child(key: str) -> str:
    return f"{key}_quantizer"


def _reader(key: str) -> Callable[[nn.Module], torch.Tensor | None]:
    child = _child(key)

    def seen(module: nn.Module) -> torch.Tensor | None:
        if key not in module._parameters:
            raise _changed(module, key)
        p = module._parameters[key]
        if p is None or sharded(p):  # outside of the forward pass
            return p
        return module._modules[child].weight(p)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]

    return seen


def _changed(owner: nn.Module, key: str) -> MetaschedError:
    problem = f"cannot be pruned or parametrized ({key}) once it is quantized"
    return MetaschedError(f"layer {type(owner).__name__}", problem, "do so before prepare, or after convert")


def hosted(module: nn.Module) -> list[tuple[str, nn.Module, str, Quantizer]]:
    """Name, module, key of the parameter and quantizer, for each weight that is quantized, in order of registration."""
    found = []
    for name, m in module.named_modules():
        if isinstance(m, _Hosting):
            for key in m._keys:
                quantizer = m._modules[_child(key)]
                assert isinstance(quantizer, Quantizer)
                found.append((name, m, key, quantizer))
    return found


def _after_loading(owner: nn.Module, keys: object) -> None:
    assert isinstance(owner, _Hosting)
    for key in owner._keys:
        quantizer, p = owner._modules[_child(key)], owner._parameters[key]
        assert isinstance(quantizer, Quantizer) and p is not None
        quantizer.loaded = True
        if quantizer.watch is not None:
            quantizer.watch.loaded()
        if quantizer._weights_alone and not quantizer.started and not isinstance(quantizer.method, Discrete):
            quantizer.refit(p.detach())
        if quantizer.before is not None:
            quantizer.before = p.detach().clone()


@torch.no_grad()
def put_quantizer(owner: nn.Module, key: str, quantizer: Quantizer, weight: torch.Tensor) -> None:
    """Puts another quantizer before a parameter that has one, and a weight [C_out, ...] that its scales fit already."""
    assert isinstance(owner, _Hosting)
    owner._modules[_child(key)] = quantizer
    p = owner._parameters[key]
    assert p is not None
    p.copy_(weight)
    quantizer._start = None
