"""Where a pass is: which module's forward runs, and which of its calls of an activation this one is.

Hooks keep a stack of the modules whose forward runs. A site of an activation that is called several times, or that is a
function, is found by the module on top and the number of calls that its forward has made. Functions are caught with a
``TorchFunctionMode``, which is active while a module of the network runs: also in a backward pass that recomputes.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from metasched.core.errors import MetaschedError
from metasched.network.inputs import Inputs
from metasched.network.kinds import BY_FUNCTION

if TYPE_CHECKING:
    from metasched.network.recomputing import Calls

_ATTRIBUTE = "_metasched_redirecting"  # of the network's module


class Site(NamedTuple):
    """What is done at one activation.

    Attributes:
        layer: index of the layer that it belongs to; None: it stays in float.
        keep: whether the function is computed and its output quantized, or the quantizer stands for the function.
        rewrites: whether the activation worked in place on a tensor that is used again, so that this must too.
    """

    layer: int | None
    keep: bool = False
    rewrites: bool = False


Key = tuple[str, str]  # name of a module whose forward calls, and what it calls: a module's name, or ``name()``


class Redirecting:
    """The sites of a network that are told apart by their calls.

    Attributes:
        sites: caller and what it calls -> its calls in the order of a pass.
        compute: what a site computes: ``compute(site, function, input)``.
        inputs: of the example; None if they are more than tensors and plain values.
        calls: as ``ActivationSite.calls``.
    """

    def __init__(
        self, sites: Mapping[Key, tuple[Site, ...]], compute: Callable[..., torch.Tensor], inputs: Inputs | None
    ) -> None:
        self.sites, self.compute, self.inputs = dict(sites), compute, inputs
        self.calls: Calls | None = None
        self.catches = any(what.endswith("()") for _, what in self.sites)
        self.quiet = False  # while an activation computes its own function
        self._stack: list[tuple[str, Counter[str], object]] = []  # with the checkpoint in which the forward began
        self._mode: _Catching | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Redirecting:
        made = Redirecting(self.sites, self.compute, self.inputs)
        memo[id(self)] = made
        made.calls = copy.deepcopy(self.calls, memo)
        return made

    def __reduce__(self) -> Any:
        return Redirecting, (self.sites, self.compute, self.inputs), {"calls": self.calls}

    def watch(self, root: nn.Module, without: set[str]) -> None:
        """Keeps account of the modules of a network that run; ``without``: names of its activation sites."""
        setattr(root, _ATTRIBUTE, self)
        for name, m in root.named_modules():
            if not any(name == site or name.startswith(f"{site}.") for site in without):
                m.register_forward_pre_hook(partial(_enter, self, name))
                m.register_forward_hook(partial(_leave, self, name), always_call=True)

    def next(self, what: str) -> Site:
        """The site of this call of a module, or of ``name()``; one that stays in float where there is none.

        Raises:
            MetaschedError: the module that calls has called it as often as in the example already, or calls it within a
            checkpoint that began in its forward.
        """
        if not self._stack:
            return Site(None)
        caller, counts, checkpoint = self._stack[-1]
        known = self.sites.get((caller, what))
        if known is None:
            return Site(None)
        if checkpoint != innermost_checkpoint():
            problem = f"calls {what} in a function that is checkpointed, whose second run cannot tell its calls apart"
            fix = "checkpoint a module whose forward is that function"
            raise MetaschedError(f"model.{caller}" if caller else "model", problem, fix)
        index = counts[what]
        counts[what] += 1
        if index >= len(known):
            raise self._other_number(caller, what, f"more than {len(known)} times")
        return known[index]

    def enter(self, name: str) -> None:
        """The forward of a module begins."""
        if not name:
            self._end()
        self._stack.append((name, Counter(), innermost_checkpoint()))
        if self.catches and self._mode is None:
            self._mode = _Catching(self)
            self._mode.__enter__()

    def leave(self, name: str) -> None:
        """The forward of a module has ended."""
        counts: Counter[str] = Counter()
        while self._stack:
            last, counts, _ = self._stack.pop()
            if last == name:
                break
        if not self._stack:
            self._end()
        if sys.exc_info()[0] is not None:
            return
        for what, count in counts.items():
            if count < (wanted := len(self.sites[name, what])):
                raise self._other_number(name, what, f"{count} times of {wanted}")

    def _end(self) -> None:
        self._stack.clear()
        if self._mode is not None:
            mode, self._mode = self._mode, None
            mode.__exit__(None, None, None)

    @staticmethod
    def _other_number(caller: str, what: str, how: str) -> MetaschedError:
        fix = "give each use a module of its own, or an example that calls it as often as training does"
        return MetaschedError(f"model.{caller}" if caller else "model", f"calls {what} {how} in a pass", fix)


def innermost_checkpoint() -> object:
    """What identifies the innermost ``torch.utils.checkpoint`` whose first run this is; None outside of one."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore
    if hooks is not None and hooks[0].__qualname__.startswith("_checkpoint_hook."):
        return hooks[0]
    if torch.is_grad_enabled():
        return None
    frame = sys._getframe(1)  # a reentrant one runs its function without gradients
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return None if frame is None else id(frame)


def redirecting_of(module: nn.Module) -> Redirecting | None:
    """What finds the sites of a network's module that are told apart by their calls; None if there are none."""
    return getattr(module, _ATTRIBUTE, None)


def forget(module: nn.Module) -> None:
    """Removes from a network's module what finds its sites."""
    module.__dict__.pop(_ATTRIBUTE, None)


def _enter(redirecting: Redirecting, name: str, module: nn.Module, inputs: Any) -> None:
    redirecting.enter(name)


def _leave(redirecting: Redirecting, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    redirecting.leave(name)


def keeps_account(hook: object) -> bool:
    """Whether a hook is one of those of ``Redirecting.watch``, which leave inputs and outputs as they are."""
    return isinstance(hook, partial) and hook.func in (_enter, _leave)


class _Catching(TorchFunctionMode):
    """Sends calls of activation functions to their sites."""

    def __init__(self, redirecting: Redirecting) -> None:
        super().__init__()
        self.redirecting = redirecting

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, own = kwargs or {}, self.redirecting
        name = getattr(func, "__name__", "")
        if name not in BY_FUNCTION or own.quiet:
            return func(*args, **kwargs)
        site = own.next(f"{name.rstrip('_')}()")
        if site.layer is None:
            return func(*args, **kwargs)
        given, args = (args[0], args[1:]) if args else (kwargs["input"], args)
        in_place = name.endswith("_") or kwargs.get("inplace", False)
        rest = {key: value for key, value in kwargs.items() if key != "input"}

        def function(x: torch.Tensor) -> torch.Tensor:
            return func(x.clone() if in_place else x, *args, **rest)

        return own.compute(own, site, function, given)
