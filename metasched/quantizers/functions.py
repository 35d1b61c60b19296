"""The ways to call a torch.autograd.Function: torch has two kinds, and the one that transforms need takes longer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

_Plain = torch.autograd.function._SingleLevelFunction  # what torch takes for "not there" in a class


def caller(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply``, by the fastest class that may be used where it is called.

    Args:
        function: with ``forward`` and ``setup_context`` apart, as torch.func asks, ``backward`` and ``jvp``. Outside
            of torch.func the first two are called as one, which is faster. Under torch.compile, which takes no ``jvp``,
            there is none.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    # torch reads the signature in each call, and computing it takes longer than several of the operations
    function.forward.__signature__ = inspect.signature(function.forward)  # pyright: ignore[reportFunctionMemberAccess]
    one = {"forward": staticmethod(forward), "setup_context": staticmethod(_Plain.setup_context)}
    plain = type(function.__name__, (function,), {**one, "generate_vmap_rule": False})
    compiled = type(function.__name__, (plain,), {"jvp": staticmethod(_Plain.jvp)})

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return compiled.apply(*inputs)  # pyright: ignore[reportAttributeAccessIssue]
        if torch._C._are_functorch_transforms_active():
            return function.apply(*inputs)
        return plain.apply(*inputs)  # pyright: ignore[reportAttributeAccessIssue]

    return call
