"""Sites: which tensors of a model are quantized, and what stands where an activation stood.

A copy of the model is made. In it each chosen activation is replaced by a site, which asks the running call what to do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer, weight_key
from metasched.methods.base import Method

Example = torch.Tensor | tuple[Any, ...] | Mapping[str, Any] | Callable[[Any], object]

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh),
    *(nn.Hardswish, nn.Mish),
)
_activate: ContextVar[Callable[[int, torch.Tensor], torch.Tensor]] = ContextVar("activate")


class ActivationSite(nn.Module):
    """Stands where an activation stood; what it computes is decided by the call that runs the network."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the running call puts out here for an input [N, ...]."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()  # noise narrower than bfloat16 can tell apart would be none
        return _activate.get()(self.layer, x)


@contextmanager
def activations(function: Callable[[int, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within: the sites compute ``function(layer index, input)``."""
    token = _activate.set(function)
    try:
        yield
    finally:
        _activate.reset(token)


def find_sites(
    model: nn.Module, method: Method, example: Example, *, first: bool = True, last: bool = False
) -> tuple[nn.Module, tuple[Layer, ...]]:
    """A copy of a model with its sites, and its L quantized layers in the order in which a pass runs them.

    Chosen are all convolutions and linear layers that a forward pass of ``example`` runs; an activation module belongs
    to the layer that ran last before it, if that layer has none yet.

    Args and errors are those of ``quantize``; a tensor as example is [N, ...].
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
    return module, tuple(layers)


def _refuse_unnamed(module: nn.Module, chosen: list[str]) -> None:
    """Each chosen layer must own its weight under its own name: parameters are told apart by their names."""
    if "" in chosen:
        raise MetaschedError("model", "is a single layer", "wrap it: torch.nn.Sequential(layer)")
    own = {name for name, _ in module.named_parameters()}
    for name in chosen:
        if weight_key(name) not in own:
            problem = "shares its weight with another layer, or has it parametrized"
            raise MetaschedError(f"model.{name}", problem, "give each quantized layer a plain weight of its own")


def _execution_order(module: nn.Module, example: Example) -> list[tuple[str, nn.Module]]:
    """The weighted layers and activations in the order in which the first pass runs them, each once."""
    ran: list[tuple[str, nn.Module]] = []
    passes: list[int] = []  # where each one ended
    hooks = [
        m.register_forward_hook(lambda m, _in, _out, name=name: ran.append((name, m)))
        for name, m in module.named_modules()
        if isinstance(m, _WEIGHTED + _ACTIVATIONS)
    ]
    hooks.append(module.register_forward_hook(lambda *_: passes.append(len(ran))))
    module.eval()
    try:
        with torch.no_grad():
            run_example(module, example)
    finally:
        for hook in hooks:
            hook.remove()
    del ran[passes[0] if passes else 0 :]
    names = [name for name, _ in ran]
    for name in names:
        if names.count(name) > 1:
            raise MetaschedError(
                f"model.{name}", "runs more than once in a forward pass", "give each use a module of its own"
            )
    return ran


def run_example(module: Callable[..., Any], example: Example) -> None:
    """One pass of a module on an example ([N, ...] if it is a tensor), or as many as a function runs."""
    if isinstance(example, torch.Tensor):
        module(example)
    elif isinstance(example, tuple):
        module(*example)
    elif isinstance(example, Mapping):
        module(**example)
    else:
        example(module)
