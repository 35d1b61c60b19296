"""Sites: what stands where an activation stood, and the copy of a model that has them.

Each chosen activation module is replaced by a site, which asks the running call what to do; functions, and modules that
are called several times, are told apart by their calls (redirecting.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.network.recomputing import Calls
from metasched.network.redirecting import Redirecting, Site, redirecting_of

_activate: ContextVar[Callable[[int, torch.Tensor], torch.Tensor]] = ContextVar("activate")


class Quantized(nn.Module):
    """A module of a quantized network whose parameters are not what its forward pass sees."""


class ActivationSite(nn.Module):
    """Stands where an activation stood; what it computes is decided by the call that runs the network.

    Attributes:
        layer: index of the layer that it belongs to; of several calls, that of the first one that is quantized.
        keep: whether it computes the activation function first, and its output is quantized.
        rewrites: whether the activation worked in place on a tensor that is used again, so that this must too.
        original: class of the activation.
        calls: of the ``QuantizedModule`` that it is in; the last one stands in while a backward pass recomputes.
        name: of the module, where it is called several times.
        redirecting: what tells calls apart in its network; None where nothing is called several times.
    """

    layer: int
    keep = False
    rewrites = False
    original: type[nn.Module]
    calls: Calls | None = None
    name = ""
    redirecting: Redirecting | None = None

    @staticmethod
    def replace(activation: nn.Module, site: Site, name: str = "", redirecting: Redirecting | None = None) -> None:
        """Makes a module a site, in every place of the model that has it."""
        original = type(activation)
        activation.__class__ = ActivationSite
        assert isinstance(activation, ActivationSite) and site.layer is not None
        activation.layer, activation.keep, activation.rewrites = site.layer, site.keep, site.rewrites
        activation.original, activation.name, activation.redirecting = original, name, redirecting

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the running call puts out here for an input [N, ...]."""
        site = Site(self.layer, self.keep, self.rewrites)
        if self.name and self.redirecting is not None:
            site = self.redirecting.next(self.name)
            if site.layer is None:
                return self._function(x, *args, **kwargs)

        def function(x: torch.Tensor) -> torch.Tensor:
            return self._function(x.clone() if getattr(self, "inplace", False) else x, *args, **kwargs)

        return compute(self, site, function, x)

    def _function(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The activation function itself."""
        if self.redirecting is None:
            return self.original.forward(self, x, *args, **kwargs)
        quiet, self.redirecting.quiet = self.redirecting.quiet, True
        try:
            return self.original.forward(self, x, *args, **kwargs)
        finally:
            self.redirecting.quiet = quiet


def compute(
    owner: ActivationSite | Redirecting,
    site: Site,
    function: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
) -> torch.Tensor:
    """What a site puts out, by the running call.

    Args:
        owner: has the ``calls`` that stand in while a backward pass recomputes.
        site: which one.
        function: the activation function, which leaves its input as it is.
        x: input, [N, ...].
    """
    activate = _activate.get(None) or (owner.calls.activate_again() if owner.calls is not None else None)
    if activate is None:
        problem = "runs outside of its quantized network"
        raise MetaschedError("model", problem, "call the QuantizedModule, or its deployed()")
    assert site.layer is not None
    given = x
    if site.keep:
        x = function(x)
    elif site.rewrites:
        x = x.clone()
    if torch.is_autocast_enabled(x.device.type):
        x = x.float()  # noise narrower than bfloat16 can tell apart would be none
    found = activate(site.layer, x)
    return given.copy_(found) if site.rewrites else found


def recompute_by(module: nn.Module, calls: Calls) -> None:
    """Lets the sites of a network's module ask ``calls`` in a backward pass that recomputes."""
    for m in module.modules():
        if isinstance(m, ActivationSite):
            m.calls = calls
    if (redirecting := redirecting_of(module)) is not None:
        redirecting.calls = calls


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
        made = copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        fix = "leave tensors with a graph, locks and the like out of its attributes"
        raise MetaschedError("model", f"cannot be copied: {error}", fix) from error
    for m in made.modules():
        for name in (
            m._modules.keys() & m.__dict__.keys()
        ):  # torch's decoder layer gets a ReLU for its activation module
            m.__dict__[name] = m._modules[name]
    return made


def refuse_quantized(model: nn.Module) -> None:
    """Raises a MetaschedError for a model that is quantized already, is none, or whose code cannot be changed."""
    if not isinstance(model, nn.Module):
        raise MetaschedError("model", f"is a {type(model).__name__}", "give a torch.nn.Module")
    for name, m in model.named_modules():
        if isinstance(m, torch.jit.ScriptModule):
            problem = "is a ScriptModule of torch.jit, whose code cannot be changed"
            raise MetaschedError(f"model.{name}" if name else "model", problem, "give the module that it was made from")
        if isinstance(m, Quantized | ActivationSite):
            problem = f"is quantized already ({name or type(m).__name__})"
            raise MetaschedError("model", problem, "give the float model, or what metasched.convert makes of this one")


def copied_with_computed(module: nn.Module) -> nn.Module:
    """A deep copy of a module, whose computed tensors, such as weights of hooks, have no graph."""
    computed = (v for m in module.modules() for v in vars(m).values() if isinstance(v, torch.Tensor) and v.grad_fn)
    return copy.deepcopy(module, {id(v): v.detach().clone() for v in computed})
