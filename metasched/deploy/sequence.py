"""The modules of a network in the order in which they run, for networks that are nothing but such a sequence."""

from __future__ import annotations

from torch import nn

from metasched.deploy.folding import unsupported
from metasched.network.recomputing import keeps_outputs


def in_order(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules in the order in which they run; a module that is no Sequential is one of its own.

    Raises:
        MetaschedError: something does more than run its children in order: a subclass of Sequential with a forward of
            its own, a hook, a forward of one instance; or a module with tensors is in two places.
    """
    return _sequence(module, "", set())


def _sequence(module: nn.Module, name: str, seen: set[int]) -> list[tuple[str, nn.Module]]:
    if any(not keeps_outputs(hook) for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())):
        raise unsupported(name, "has hooks, which may change what it computes", "remove them before")
    if "forward" in vars(module):
        raise unsupported(name, "has a forward of its own instance, which may compute anything")
    if not isinstance(module, nn.Sequential):
        if id(module) in seen and any(True for _ in (*module.parameters(), *module.buffers())):
            raise unsupported(name, "is in the network twice", "give each place a module of its own")
        seen.add(id(module))
        return [(name, module)]
    if type(module).forward is not nn.Sequential.forward:
        raise unsupported(name, f"is a {type(module).__name__}, whose forward is not that of Sequential")
    prefix = f"{name}." if name else ""
    children = [(prefix + key, child) for key, child in module._modules.items() if child is not None]
    return [found for key, child in children for found in _sequence(child, key, seen)]
