"""What comes right after each layer in a pass, so that it counts in the error of the layer's output; and residual sums.

After a layer may come a batch normalization, and then an activation, a module or a function, each as long as nothing
else takes what is before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from metasched.network.kinds import BY_FUNCTION, activation_kind

Function = Callable[[torch.Tensor], torch.Tensor]
_ADDS = frozenset(("add", "add_", "__add__", "__radd__", "__iadd__"))
_MIXES = "Softmax"  # an activation that is none of each element alone


@dataclass(frozen=True)
class Tail:
    """What comes right after a layer.

    Attributes:
        norm: name of the batch normalization; None: there is none.
        activation: name of the activation module, or the function; None: there is none.
    """

    norm: str | None = None
    activation: str | Function | None = None


class Followed(NamedTuple):
    """What one pass has shown.

    Attributes:
        called: names of the modules whose forward ran, in the order of their first calls.
        tails: name of each of them -> what comes right after it.
        residual: names of those, but for the network itself, whose own forward adds two tensors of one shape.
    """

    called: tuple[str, ...]
    tails: dict[str, Tail]
    residual: tuple[str, ...]


def followed(module: nn.Module, run: Callable[[nn.Module], object]) -> Followed:
    """Follows a pass that ``run`` makes of a module in eval mode."""
    following = _Following(module)
    hooks = []
    for name, m in module.named_modules():
        hooks.append(m.register_forward_pre_hook(following.enter(name), with_kwargs=True))
        hooks.append(m.register_forward_hook(following.leave(name)))
    try:
        with torch.no_grad(), following:
            run(module)
    finally:
        for hook in hooks:
            hook.remove()
    tails = {name: following.tail(name) for name in following.outputs}
    return Followed(tuple(following.outputs), tails, tuple(following.residual))


class _Taker(NamedTuple):
    """A use of a tensor: by a module that is a normalization or an activation, or by an activation function."""

    module: str | None
    function: Function | None


class _Following(TorchFunctionMode):
    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.modules = dict(root.named_modules())
        self.stack: list[tuple[str, set[int]]] = []  # modules that run, with their inputs
        self.outputs: dict[str, list[torch.Tensor | None]] = {}  # module -> what its calls put out
        self.takers: dict[int, list[_Taker]] = {}
        self.residual: dict[str, None] = {}
        self.closed: set[int] = set()  # rewritten by an activation in place
        self.kept: list[Any] = []  # all tensors, so that each keeps its identity

    def enter(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.stack.append((name, {id(t) for t in _tensors((args, kwargs))}))
            self.outputs.setdefault(name, [])

        return hook

    def leave(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            self.stack.pop()
            self.kept.append(output)
            self.outputs[name].append(output if isinstance(output, torch.Tensor) else None)

        return hook

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        found = func(*args, **kwargs)
        if not _tensors(found):
            return found  # reading a shape is no use of the values
        self.kept.append((given, found))
        name = getattr(func, "__name__", "")
        if name in _ADDS and len(given) == 2 and given[0].shape == given[1].shape and self.stack and self.stack[-1][0]:
            self.residual[self.stack[-1][0]] = None
        function = None
        if (kind := BY_FUNCTION.get(name)) is not None and kind.name != _MIXES and len(given) == 1:
            rest, named = args[1:], kwargs
            function = lambda x: func(x, *rest, **named)  # noqa: E731
        top, inputs = self.stack[-1] if self.stack else ("", set())
        whole = self.stack != [] and _is_one(self.modules[top])
        for t in given:
            if id(t) not in self.closed:
                inside = top if whole and id(t) in inputs else None
                self.takers.setdefault(id(t), []).append(_Taker(inside, function))
            if found is t and (whole or function is not None):
                self.closed.add(id(t))  # what takes it from now on takes the activation
        return found

    def tail(self, name: str) -> Tail:
        """What comes right after a module, in all of its calls alike."""
        norm = self._next(name)
        if not isinstance(norm, str) or not isinstance(self.modules[norm], _BatchNorm):
            norm = None
        after = self._next(norm or name)
        if isinstance(after, str) and isinstance(self.modules[after], _BatchNorm):
            after = None
        return Tail(norm, after)

    def _next(self, name: str) -> str | Function | None:
        """The only module or activation function that takes the output of a module that is called once."""
        outputs = self.outputs[name]
        if len(outputs) != 1 or outputs[0] is None:
            return None
        takers = self.takers.get(id(outputs[0]), [])
        if len(takers) != 1:
            return None
        return takers[0].module or takers[0].function


def _is_one(module: nn.Module) -> bool:
    """Whether a module is a normalization or an activation of each element."""
    kind = activation_kind(module)
    return isinstance(module, _BatchNorm) or (kind is not None and kind.name != _MIXES)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
