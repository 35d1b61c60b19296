"""Activations that are functions, or modules that are called several times, as graphs of torch.fx that call staircases.

The whole network is one graph where torch.fx can trace it. Else each module whose own forward calls such activations is
traced by itself, and all others stay as they are. A function that a module has as an attribute
(``self.activation = F.gelu``) becomes a module there, without a trace.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from metasched.network.kinds import BY_FUNCTION
from metasched.network.redirecting import Redirecting, Site, forget, keeps_account, redirecting_of
from metasched.network.sites import ActivationSite
from metasched.network.staircase import staircase
from metasched.quantizers.levels import LevelSet

Stairs = Mapping[int, tuple[LevelSet, torch.Tensor | float]]  # layer -> levels of its activation, value of level 1
_STAIRS, _FUNCTIONS = "staircases", "activation_functions"
_OWN = ("layer", "keep", "rewrites", "original", "calls", "name", "redirecting", "function", "stairs")


def replace_sites(network: nn.Module, stairs: Stairs) -> None:
    """Puts a staircase in the place of each site that is a module of its own."""
    made: dict[ActivationSite, nn.Module] = {}
    for parent in list(network.modules()):
        for key, child in parent._modules.items():
            if isinstance(child, ActivationSite):
                if child not in made:
                    levels, scale = stairs[child.layer]
                    function = _function_of(child) if child.keep else None
                    made[child] = staircase(levels, scale, rewrites=child.rewrites, function=function)
                parent._modules[key] = made[child]
                if key in parent.__dict__:  # where a copy of a decoder layer keeps its activation
                    parent.__dict__[key] = made[child]


def traced_whole(network: nn.Module, stairs: Stairs) -> nn.Module:
    """The network as one graph; raises what torch.fx raises where it cannot trace it."""
    redirecting = prepared(network, network, stairs)
    made = _traced(network, "", redirecting, {caller for caller, _ in redirecting.sites})
    for m in list(made.modules()):  # torch.fx keeps some that its graph does not call
        for key in [key for key, child in m._modules.items() if isinstance(child, ActivationSite)]:
            del m._modules[key]
    return made


def traced_by_callers(network: nn.Module, stairs: Stairs) -> nn.Module:
    """The network with those modules as graphs that call such activations themselves; raises as ``traced_whole``."""
    redirecting = redirecting_of(network)
    assert redirecting is not None
    for name in sorted({caller for caller, _ in redirecting.sites}, key=lambda name: -len(name and name.split("."))):
        caller = network.get_submodule(name)
        if _has_taken(caller, name, stairs, redirecting):
            continue
        prepared(network, caller, stairs)
        made = _with_attributes(_traced(caller, name, redirecting, {name}), caller)
        if not name:
            network = made
        for parent in list(network.modules()):
            parent._modules.update({key: made for key, child in parent._modules.items() if child is caller})
    replace_sites(network, stairs)
    return network


def prepared(network: nn.Module, root: nn.Module, stairs: Stairs) -> Redirecting:
    """Lets the sites of a network call staircases that are submodules of ``root``, which is traced."""
    redirecting = redirecting_of(network)
    assert redirecting is not None
    made = {layer: staircase(levels, scale, rewrites=False) for layer, (levels, scale) in stairs.items()}
    root.add_module(_STAIRS, nn.ModuleDict({str(layer): stair for layer, stair in made.items()}))
    functions = nn.ModuleDict()
    for m in list(root.modules()):
        if isinstance(m, ActivationSite):
            own = m.function if isinstance(m, TracedSite) else _function_of(m)
            functions[str(len(functions))] = own
            m.__class__ = TracedSite  # pyright: ignore[reportAttributeAccessIssue]
            object.__setattr__(m, "function", own)
            object.__setattr__(m, "stairs", made)
    root.add_module(_FUNCTIONS, functions)

    def compute(owner: object, site: Site, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Any:
        return _placed(made, site, function, x)

    redirecting.compute = compute
    return redirecting


def forget_calls(network: nn.Module) -> None:
    """Removes the account of calls from a network."""
    forget(network)
    for m in network.modules():
        for hooks in (m._forward_pre_hooks, m._forward_hooks):
            for number in [n for n, hook in hooks.items() if keeps_account(hook)]:
                del hooks[number]
                m._forward_hooks_always_called.pop(number, None)


class TracedSite(ActivationSite):
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


def _function_of(site: ActivationSite) -> nn.Module:
    """The activation itself."""
    made = copy.copy(site)
    made.__dict__ = {key: value for key, value in site.__dict__.items() if key not in _OWN}
    made.__class__ = site.original  # pyright: ignore[reportAttributeAccessIssue]
    if "inplace" in made.__dict__:
        made.__dict__["inplace"] = False
    return made


def _placed(
    stairs: Mapping[int, nn.Module], site: Site, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    if site.layer is None:
        return function(x)
    found = stairs[site.layer](function(x) if site.keep else x)
    return x.copy_(found) if site.rewrites else found


class _Tracer(fx.Tracer):
    def __init__(self, name: str, callers: set[str]) -> None:
        super().__init__()
        self.name, self.callers = name, callers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the graph calls a module as it is: those without sites in them, and staircases."""
        if isinstance(m, fx.GraphModule):
            return True
        if self.callers == {self.name}:  # which is traced alone
            return not isinstance(m, ActivationSite)
        inside = f"{module_qualified_name}."
        if any(name == module_qualified_name or name.startswith(inside) for name in self.callers):
            return False
        if any(isinstance(inner, ActivationSite) for inner in m.modules()):
            return False
        return super().is_leaf_module(m, module_qualified_name)


def _traced(root: nn.Module, name: str, redirecting: Redirecting, callers: set[str]) -> fx.GraphModule:
    tracer = _Tracer(name, callers)
    redirecting.enter(name)
    try:
        graph = tracer.trace(root)
    finally:
        redirecting.leave(name)
    graph._tracer_cls = None  # ours would be in a pickle
    made = fx.GraphModule(root, graph, type(root).__name__)
    made.delete_all_unused_submodules()
    return made.eval()


def _has_taken(caller: nn.Module, name: str, stairs: Stairs, redirecting: Redirecting) -> bool:
    """Whether all functions of a module are attributes of it, and modules have taken their place."""
    taken: dict[str, tuple[Site, nn.Module]] = {}
    for (owner, what), sites in redirecting.sites.items():
        if owner != name:
            continue
        function = what.removesuffix("()")
        keys = [key for key, value in vars(caller).items() if getattr(value, "__name__", None) == function]
        kind = BY_FUNCTION.get(function)
        if function == what or kind is None or len(keys) != 1 or len(set(sites)) != 1 or sites[0].rewrites:
            return False
        try:
            taken[keys[0]] = sites[0], getattr(nn, kind.name)()
        except TypeError:  # it needs arguments
            return False
    for key, (site, module) in taken.items():
        assert site.layer is not None
        levels, scale = stairs[site.layer]
        delattr(caller, key)
        caller.add_module(key, staircase(levels, scale, rewrites=False, function=module if site.keep else None))
    return True


def _with_attributes(made: fx.GraphModule, before: nn.Module) -> fx.GraphModule:
    """A graph with what other modules may read of the module that it stands for."""
    for key, value in vars(before).items():
        if not key.startswith("_") and key not in vars(made):
            made.__dict__[key] = value
    for key, child in before._modules.items():
        if key not in made._modules and key not in (_STAIRS, _FUNCTIONS) and not isinstance(child, ActivationSite):
            made._modules[key] = child
    return made
