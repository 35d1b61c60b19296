"""Sites: which tensors of a model are quantized, and what stands where an activation stood.

A copy of the model is made. In it each chosen activation is replaced by a site, which asks the running call what to do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer, weight_key
from metasched.methods.base import Method
from metasched.network.choice import Choice, Rules
from metasched.network.flow import WEIGHTED, Example, Flow, flow_of
from metasched.network.recipe import Recipe
from metasched.network.recomputing import Calls

_GATES = (nn.Sigmoid,)  # which stay in float where they are multiplied with another tensor
_activate: ContextVar[Callable[[int, torch.Tensor], torch.Tensor]] = ContextVar("activate")


class Sites(NamedTuple):
    """A copy of a model with its sites, what is quantized, and what stays in float and why, as ``name (type): why``."""

    module: nn.Module
    layers: tuple[Layer, ...]
    floats: tuple[str, ...]
    methods: tuple[Method, ...]


class ActivationSite(nn.Module):
    """Stands where an activation stood; what it computes is decided by the call that runs the network.

    Attributes:
        layer: index of the layer that it belongs to.
        rewrites: whether the activation worked in place on a tensor that is used again, so that this must too.
        calls: of the ``QuantizedModule`` that it is in; the last one stands in while a backward pass recomputes.
    """

    layer: int
    rewrites = False
    calls: Calls | None = None

    @staticmethod
    def replace(activation: nn.Module, layer: int, *, rewrites: bool) -> None:
        """Makes a module a site, in every place of the model that has it."""
        activation.__class__ = ActivationSite
        assert isinstance(activation, ActivationSite)
        activation.layer, activation.rewrites = layer, rewrites

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the running call puts out here for an input [N, ...]."""
        activate = _activate.get(None) or (self.calls.activate_again() if self.calls is not None else None)
        if activate is None:
            problem = "runs outside of its quantized network"
            raise MetaschedError("model", problem, "call the QuantizedModule, or its deployed()")
        given = x
        if self.rewrites:
            x = x.clone()
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()  # noise narrower than bfloat16 can tell apart would be none
        found = activate(self.layer, x)
        return given.copy_(found) if self.rewrites else found


@contextmanager
def activations(function: Callable[[int, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within: the sites compute ``function(layer index, input)``."""
    token = _activate.set(function)
    try:
        yield
    finally:
        _activate.reset(token)


def running() -> Callable[[int, torch.Tensor], torch.Tensor] | None:
    """What the sites compute now; None outside of ``activations``."""
    return _activate.get(None)


def find_sites(model: nn.Module, recipe: Recipe, example: Example) -> Sites:
    """A copy of a model with its sites, and its L quantized layers in the order in which a pass runs them.

    Chosen are all convolutions and linear layers that a forward pass of ``example`` runs. An activation module belongs
    to the layer whose output it gets, if that layer has none yet; of several layers (a sum of two branches) to the one
    that ran last. Outputs of the network and Sigmoid gates stay in float.

    Args and errors are those of ``quantize``; a tensor as example is [N, ...].
    """
    module = copied(model)
    modes = {name: m.training for name, m in module.named_modules()}
    flow = flow_of(module, example)
    rules = Rules(recipe, module)
    about = {name: rules.about(name, name) for name, _ in flow.ran}
    rules.refuse_unused()
    weighted = [name for name, m in flow.ran if isinstance(m, WEIGHTED)]
    ends = {*weighted[: 0 if recipe.first else 1], *weighted[len(weighted) if recipe.last else len(weighted) - 1 :]}
    chosen = [name for name in weighted if (name not in ends if (q := about[name].quantize) is None else q)]
    by_rule = [
        f"{n} ({type(module.get_submodule(n)).__name__}): {about[n].why}"
        for n in weighted
        if n not in chosen and about[n].why
    ]
    others = (*_other_layers(module, flow), *by_rule)
    if not chosen:
        has = f" (in float: {', '.join(others)})" if others else ""
        problem = f"the model has no layer left to quantize{has}"
        raise MetaschedError("quantize", problem, "set quantize.last or first: true")
    _refuse_unnamed(module, chosen)
    methods = rules.methods([about[name] for name in chosen])
    base = recipe.build()
    followed, floats = _owners(flow, chosen, about)
    layers = []
    for i, name in enumerate(chosen):
        own = module.get_submodule(name)
        weight: torch.Tensor = own.weight  # pyright: ignore[reportAssignmentType]
        method = methods[i] if methods else base
        site = method.quantizes == "weight+activation" and name in followed
        if site:
            activation = followed[name]
            ActivationSite.replace(module.get_submodule(activation), i, rewrites=activation in flow.reused)
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
    _no_fused_path(module)
    module.train()
    if model.training:  # what the user has put into eval mode, such as a frozen batch normalization, stays there
        for name, m in module.named_modules():
            m.training = modes[name]
    asked = any(method.quantizes == "weight+activation" for method in methods or (base,))
    return Sites(module, tuple(layers), (*others, *floats) if asked else others, methods)


def copied(module: nn.Module) -> nn.Module:
    """A deep copy of a module.

    Raises:
        MetaschedError: it cannot be copied; if a layer has a computed weight, the message names it.
    """
    for name, m in module.named_modules():
        for key, value in vars(m).items():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                problem = f"has a computed {key}, as torch.nn.utils.prune or weight_norm leave it"
                fix = "make it a plain parameter first: prune.remove(layer, 'weight') or remove_weight_norm(layer)"
                raise MetaschedError(f"model.{name}" if name else "model", problem, fix)
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        fix = "leave tensors with a graph, locks and the like out of its attributes"
        raise MetaschedError("model", f"cannot be copied: {error}", fix) from error


def _owners(flow: Flow, chosen: list[str], about: Mapping[str, Choice]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The activation of each chosen layer that has one, and those activations that stay in float."""
    modules, order = dict(flow.ran), [name for name, _ in flow.ran]
    followed: dict[str, str] = {}
    floats = []
    current = None
    for name, m in flow.ran:
        if isinstance(m, WEIGHTED):
            current = name
            continue
        feeding = [s for s in flow.sources[name] if isinstance(modules[s], WEIGHTED)]
        owner = max(feeding, key=order.index) if feeding else None if flow.sources[name] else current
        later = any(isinstance(x, WEIGHTED) for _, x in flow.ran[order.index(name) + 1 :])
        if owner is not None and owner not in chosen:
            continue
        choice = about[name]
        if choice.quantize is False or choice.activation == "float":
            why = choice.why or "a rule says so"
        elif name not in flow.feeds and not (flow.lost and later):
            why = "is the output of the network"
        elif owner is None or owner in followed:
            why = "does not follow a layer" if not flow.sources[name] else "is the second activation of its layer"
        elif isinstance(m, _GATES) and name in flow.gates and not choice.quantize:
            why = "is a gate"
        else:
            followed[owner] = name
            continue
        floats.append(f"{name} ({type(m).__name__}): {why}")
    return followed, (
        *floats,
        *(f"{name}: is not an activation module that can be replaced" for name in flow.functions),
    )


def _other_layers(module: nn.Module, flow: Flow) -> tuple[str, ...]:
    """Layers with a weight of two or more dimensions that cannot be quantized, or that the example does not reach."""
    found = []
    ran = {name for name, _ in flow.ran}
    for name, m in module.named_modules():
        if isinstance(m, WEIGHTED):
            why = None if name in ran else "is not run as a layer by the example"
        elif isinstance(m, nn.Embedding) or not any(p.dim() > 1 for p in m.parameters(recurse=False)):
            why = None
        else:
            inside = any(True for _ in m.children())
            why = "its own parameters are not quantized" if inside else "is of a type that is not quantized"
        if why is not None:
            found.append(f"{name or 'model'} ({type(m).__name__}): {why}")
    return tuple(found)


def _no_fused_path(module: nn.Module) -> None:
    """Torch's fused transformer layers, used in eval mode, would go around the sites in them."""
    fused = nn.TransformerEncoderLayer, nn.TransformerEncoder
    for m in module.modules():
        if isinstance(m, fused) and any(isinstance(inner, ActivationSite) for inner in m.modules()):
            if isinstance(m, nn.TransformerEncoder):
                m.use_nested_tensor = False
            else:
                m.activation_relu_or_gelu = 0


def _refuse_unnamed(module: nn.Module, chosen: list[str]) -> None:
    """Each chosen layer must own its weight under its own name: parameters are told apart by their names."""
    if "" in chosen:
        raise MetaschedError("model", "is a single layer", "wrap it: torch.nn.Sequential(layer)")
    own = {name for name, _ in module.named_parameters()}
    fix = "give each quantized layer a plain weight of its own"
    for name in chosen:
        if weight_key(name) not in own:
            problem = "shares its weight with another layer, or has it parametrized"
            raise MetaschedError(f"model.{name}", problem, fix)
    for name in chosen:
        layer = module.get_submodule(name)
        for other, m in module.named_modules():
            if m is not layer and any(p is layer.weight for p in m.parameters(recurse=False)):
                problem = f"shares its weight with {other}, which is not quantized"
                raise MetaschedError(f"model.{name}", problem, fix)
