"""Activation checkpointing: parts of a network that run again in the backward pass, after the call has ended.

They must see the weights and activations of the call: the last one with gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from metasched.network.redirecting import keeps_account


class Calls:
    """The last call of a network with gradients; a copy or a pickle of it is empty, since its tensors have a graph.

    Attributes:
        activate: what its sites compute; None before the first call.
        weights: name of a quantized weight -> the tensor [C_out, ...] that the forward pass uses.
    """

    def __init__(self) -> None:
        self.activate: Callable[[int, torch.Tensor], torch.Tensor] | None = None
        self.weights: Mapping[str, torch.Tensor] = {}
        self._kept: dict[tuple[int, str, int], nn.Parameter] = {}  # by module, name there, and what runs

    def __deepcopy__(self, memo: dict[int, Any]) -> Calls:
        return Calls()

    def __reduce__(self) -> tuple[type[Calls], tuple[()]]:
        return Calls, ()

    def begin(
        self, activate: Callable[[int, torch.Tensor], torch.Tensor] | None, weights: Mapping[str, torch.Tensor]
    ) -> None:
        """Notes a call."""
        self.activate, self.weights = activate, weights

    def end(self) -> None:
        """Forgets the last call."""
        self.begin(None, {})

    def activate_again(self) -> Callable[[int, torch.Tensor], torch.Tensor] | None:
        """What the sites compute in a backward pass; None outside of one."""
        return self.activate if _in_backward() else None

    def watch(self, root: nn.Module, key: str, running: Callable[[], object]) -> None:
        """Lets the layers that have the weight ``key`` of a network see it quantized, when they run again.

        ``running()`` is not None while a call runs, which gives the layers their weights itself.
        """
        for owner, name in holders(root, key):
            parents = (m for m in root.modules() if owner in m.children())
            for runs in (owner, *parents):  # which may read the weight without calling its layer
                runs.register_forward_pre_hook(partial(_put, self, key, owner, name, running))
                runs.register_forward_hook(partial(_take_back, self, owner, name), always_call=True)


def holders(root: nn.Module, key: str) -> list[tuple[nn.Module, str]]:
    """The modules that have the weight ``key`` of a network, tied ones too, and the name of the weight in each."""
    weight = root.get_parameter(key)
    return [(m, name) for m in root.modules() for name, p in m._parameters.items() if p is weight]


def keeps_outputs(hook: object) -> bool:
    """Whether a hook is one of those of this package, which leave inputs and outputs as they are."""
    return keeps_account(hook) or (isinstance(hook, partial) and hook.func in (_put, _take_back))


def _put(
    calls: Calls, key: str, owner: nn.Module, name: str, running: Callable[[], object], layer: nn.Module, args: Any
) -> None:
    if key in calls.weights and running() is None and _in_backward():
        kept = owner._parameters[name]
        assert kept is not None
        calls._kept[id(owner), name, id(layer)] = kept
        owner._parameters[name] = calls.weights[key]  # pyright: ignore[reportArgumentType]


def _take_back(calls: Calls, owner: nn.Module, name: str, layer: nn.Module, args: Any, output: Any) -> None:
    if (id(owner), name, id(layer)) in calls._kept:
        owner._parameters[name] = calls._kept.pop((id(owner), name, id(layer)))


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
