"""The walk of a calibration: the float network, the network that is quantized so far, and the units between them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from metasched.calibration.batches import Batches, Call, checked, placed
from metasched.calibration.following import Followed, followed
from metasched.calibration.parts import By, Part, parts_of
from metasched.calibration.shell import Shell
from metasched.calibration.table import ProcedureSpec
from metasched.calibration.unit import INNER, Rounded, Segment, Unit, first_tensor
from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.methods.config import MethodConfig
from metasched.methods.oriented import Oriented
from metasched.methods.parameters import STEConfig
from metasched.methods.ste import STE
from metasched.network.flow import Example
from metasched.network.operations import without_fused_layers
from metasched.network.quantize import quantize
from metasched.network.recipe import Recipe, rules_for
from metasched.network.sites import copied, refuse_quantized

_SHARED = ("levels", "activation_levels", "granularity")  # parameters of the recipe's method that are read as they are


class Walk:
    """The float network, the shell of the quantized one, and the parts in their order."""

    def __init__(
        self, model: nn.Module, recipe: Recipe | MethodConfig | str, batches: Batches, spec: ProcedureSpec, by: By
    ) -> None:
        refuse_quantized(model)
        self.reference = copied(model).eval()
        calls = checked(batches)
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        self.calls = placed(calls, like)
        seen = _first_pass(self.reference, self.calls[0])
        network = quantize(model, _plain(recipe, spec), _example(self.calls[0]))
        if network.floats:
            warnings.warn(f"model: stay in float: {'; '.join(network.floats)}", MetaschedWarning, stacklevel=3)
        self.layers = network.layers
        self.methods = tuple(_of_weights(network.method_of(i), spec) for i in range(len(self.layers)))
        for layer, own in zip(self.layers, self.methods, strict=True):
            if spec.balanced and not _is_balanced(own.quantizer.levels.levels):
                problem = f"takes ternary or balancedB levels, and the layer has {_shown(own.quantizer.levels.levels)}"
                raise MetaschedError(f"model.{layer.name}", f"{spec.name} {problem}", "set weights='balanced4'")
        self.parts = parts_of(self.layers, seen, self.reference, by, blocks=spec.blocks)
        self.tails = seen.tails
        self.shell = Shell(network, _example(self.calls[0]))

    def unit(self, part: Part, tick: Callable[[float], None]) -> Unit:
        """A part with its inputs and targets, as the network is now.

        Raises:
            MetaschedError: the float network puts out numbers that are not finite there.
        """
        inner = self.reference.get_submodule(part.name)
        layers = tuple(replace(self.layers[i], quantizes="weight", key=f"{INNER}.{key}") for i, key in part.layers)
        tail, modules = self.tails[part.name], dict(self.reference.named_modules())
        norm = modules[tail.norm] if tail.norm else None
        after = modules[tail.activation] if isinstance(tail.activation, str) else tail.activation
        segment = Segment(inner, norm, after, [key for _, key in part.layers])
        calls = inputs_of(self.shell.module, part.name, self.calls)
        raw = [y for _, y in _runs(self.reference, part.name, self.calls)]
        with torch.no_grad():
            targets = [segment.after(y.clone()) for y in raw]
        if not all(bool(t.isfinite().all()) for t in targets):
            problem = "puts out numbers that are not finite in the float network"
            raise MetaschedError(f"model.{part.name}", problem, "check the network and the batches")
        methods = tuple(self.methods[i] for i, _ in part.layers)
        return Unit(part.name, segment, layers, methods, calls, raw, targets, seed=0, tick=tick)

    def settle(self, part: Part, rounded: Sequence[Rounded]) -> None:
        """Puts the layers of a part into the network, and fits the scales of their activations."""
        for (i, _), own in zip(part.layers, rounded, strict=True):
            self.shell.put(i, own)
        for i, _ in part.layers:
            self.shell.fit_activation(i, self.calls)


def inputs_of(module: nn.Module, name: str, calls: Sequence[Call]) -> list[Call]:
    """The arguments of a submodule in passes of a module, one entry for each of its calls."""
    return [given for given, _ in _runs(module, name, calls)]


@torch.no_grad()
def _runs(module: nn.Module, name: str, calls: Sequence[Call]) -> list[tuple[Call, torch.Tensor]]:
    """Arguments and first output tensor of each call of a submodule; copies, as later functions may write to them."""
    found: list[tuple[Call, torch.Tensor]] = []
    waiting: list[Call] = []

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        waiting.append(tree_map(_copied, (args, kwargs)))

    def leave(_: nn.Module, inputs: Any, output: Any) -> None:
        found.append((waiting.pop(), first_tensor(output).detach().clone()))

    inner = module.get_submodule(name)
    hooks = (inner.register_forward_pre_hook(enter, with_kwargs=True), inner.register_forward_hook(leave))
    try:
        with without_fused_layers():
            for args, kwargs in calls:
                module(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _first_pass(model: nn.Module, call: Call) -> Followed:
    """Follows a pass of the float network.

    Raises:
        MetaschedError: it does not take the batch.
    """
    args, kwargs = call
    try:
        with without_fused_layers():
            return followed(model, lambda module: module(*args, **kwargs))
    except MetaschedError:
        raise
    except Exception as error:  # whatever the code of a model raises
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise MetaschedError(
            "calibrate: batch 0", f"the network does not take it ({said})", "give its inputs"
        ) from error


def _example(call: Call) -> Example:
    args, kwargs = call
    return lambda module: module(*args, **kwargs)


def _plain(recipe: Recipe | MethodConfig | str, spec: ProcedureSpec) -> Recipe:
    """The recipe with ``ste`` for its method: hard weights and activations, with scales that fit.

    Raises:
        MetaschedError: its method is built already.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe(recipe)
    config = recipe.method
    if not isinstance(config, MethodConfig):
        raise MetaschedError("recipe", "has a method that is built already", "give it a MethodConfig")
    own = {name: getattr(config, name) for name in _SHARED}
    if spec.channels:
        own["granularity"] = "channel"
    scale = "least_squares" if config.scale in ("unit", "learned") else config.scale
    activation = "learned" if config.activation_scale == 1 else config.activation_scale
    plain = STEConfig(**own, scale=scale, activation_scale=activation)
    return Recipe(plain, rules_for(plain, recipe.rules), recipe.first, recipe.last)


def _of_weights(method: Any, spec: ProcedureSpec) -> Any:
    """The method of a layer, with a fixed scale of the weight."""
    if isinstance(method, Oriented):
        return Oriented(_of_weights(method.base, spec), method.groups)
    quantizer = method.quantizer
    scale = "least_squares" if quantizer.scale in ("unit", "learned") else quantizer.scale
    granularity = "channel" if spec.channels else quantizer.granularity
    return STE(replace(quantizer, scale=scale, granularity=granularity))


def _is_balanced(levels: tuple[float, ...]) -> bool:
    top = int(levels[-1])
    return levels == tuple(float(q) for q in range(-top, top + 1)) and (top + 1) & top == 0


def _shown(levels: tuple[float, ...]) -> str:
    return f"{len(levels)} of them from {levels[0]:g} to {levels[-1]:g}"
