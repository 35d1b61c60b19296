"""Networks without sites: staircases stand where the quantizers of activations stood.

Where each site is a module of its own, the modules are replaced. Where activations are functions, or modules that are
called several times, the network is traced by torch.fx, and the graph calls the staircases.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from metasched.core.errors import MetaschedError
from metasched.network.redirecting import Redirecting, Site, keeps_account, redirecting_of
from metasched.network.sites import ActivationSite
from metasched.network.staircase import staircase
from metasched.quantizers.levels import LevelSet

Stairs = Mapping[int, tuple[LevelSet, torch.Tensor | float]]  # layer -> levels of its activation, value of level 1
_STAIRS, _OWN = "staircases", ("layer", "keep", "rewrites", "original", "calls", "name", "redirecting")


def without_sites(network: nn.Module, stairs: Stairs) -> nn.Module:
    """A network in eval mode whose sites are staircases; the given one is used up.

    Raises:
        MetaschedError: activations are functions, and torch.fx cannot trace the network.
    """
    redirecting = redirecting_of(network)
    if redirecting is not None:
        return _traced(network, stairs, redirecting)
    made: dict[ActivationSite, nn.Module] = {}
    for parent in list(network.modules()):
        for key, child in parent._modules.items():
            if isinstance(child, ActivationSite):
                if child not in made:
                    levels, scale = stairs[child.layer]
                    function = _function_of(child) if child.keep else None
                    made[child] = staircase(levels, scale, rewrites=child.rewrites, function=function)
                parent._modules[key] = made[child]
                if key in parent.__dict__:
                    parent.__dict__[key] = made[child]
    return network


def _function_of(site: ActivationSite) -> nn.Module:
    """The activation itself."""
    made = copy.copy(site)
    made.__dict__ = {key: value for key, value in site.__dict__.items() if key not in _OWN}
    made.__class__ = site.original  # pyright: ignore[reportAttributeAccessIssue]
    if "inplace" in made.__dict__:
        made.__dict__["inplace"] = False
    return made


class _Tracing(ActivationSite):
    """A site while its network is traced."""

    function: nn.Module
    stairs: Mapping[int, nn.Module]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The graph of what the site puts out."""
        site = Site(self.layer, self.keep, self.rewrites)
        if self.name and self.redirecting is not None:
            site = self.redirecting.next(self.name)
        return _placed(
            self.stairs, site, partial(self.function, *args, **kwargs) if args or kwargs else self.function, x
        )


def _placed(
    stairs: Mapping[int, nn.Module], site: Site, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    if site.layer is None:
        return function(x)
    found = stairs[site.layer](function(x) if site.keep else x)
    return x.copy_(found) if site.rewrites else found


class _Tracer(fx.Tracer):
    def __init__(self, callers: set[str]) -> None:
        super().__init__()
        self.callers = callers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the graph calls a module as it is: those of torch without sites in them, and staircases."""
        if isinstance(m, fx.GraphModule):
            return True
        inside = f"{module_qualified_name}."
        if any(name == module_qualified_name or name.startswith(inside) for name in self.callers):
            return False
        if any(isinstance(inner, ActivationSite) for inner in m.modules()):
            return False
        return super().is_leaf_module(m, module_qualified_name)


def _traced(network: nn.Module, stairs: Stairs, redirecting: Redirecting) -> nn.Module:
    made = {layer: staircase(levels, scale, rewrites=False) for layer, (levels, scale) in stairs.items()}
    network.add_module(_STAIRS, nn.ModuleDict({str(layer): stair for layer, stair in made.items()}))
    functions = nn.ModuleDict()
    for m in list(network.modules()):
        if isinstance(m, ActivationSite):
            own = _function_of(m)
            functions[str(len(functions))] = own
            m.__class__ = _Tracing  # pyright: ignore[reportAttributeAccessIssue]
            object.__setattr__(m, "function", own)
            object.__setattr__(m, "stairs", made)
    network.add_module("activation_functions", functions)

    def compute(owner: object, site: Site, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Any:
        return _placed(made, site, function, x)

    redirecting.compute = compute
    tracer = _Tracer({caller for caller, _ in redirecting.sites})
    redirecting.enter("")
    try:
        graph = tracer.trace(network)
    except MetaschedError:
        raise
    except Exception as error:  # whatever the code of a model raises where a tensor has no value
        problem = f"calls activations as functions, and torch.fx cannot trace it ({str(error).partition(chr(10))[0]})"
        raise MetaschedError("convert", problem, "make them modules, such as torch.nn.ReLU, each used once") from error
    finally:
        redirecting.leave("")
    graph._tracer_cls = None  # ours would be in a pickle
    traced = fx.GraphModule(network, graph, type(network).__name__)
    traced.delete_all_unused_submodules()
    for m in traced.modules():
        for hooks in (m._forward_pre_hooks, m._forward_hooks):
            for number in [n for n, hook in hooks.items() if keeps_account(hook)]:
                del hooks[number]
                m._forward_hooks_always_called.pop(number, None)
    return traced.eval()
