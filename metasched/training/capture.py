"""Recording a function on tensors that stay where they are, to replay it: as a CUDA graph, or on the CPU for tests.

On the CPU each operation is noted with the very tensors that it took and gave, and a replay computes them again. Like a
CUDA graph it runs no Python: a number that was read on the host, or a tensor that lies elsewhere by now, stays what it
was and shows as a wrong result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Function = Callable[[], object]
Replay = Callable[[], object]
Capture = Callable[[Function], Replay]

_WARM_UP = 2  # calls on the stream that is recorded: libraries set themselves up in the first
_MAKES = (torch.ops.aten.lift_fresh.default,)  # a tensor from numbers of Python's

_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, torch.ops.aten.where.self)


class NotRecordable(Exception):
    """The function does something that a recording cannot repeat."""


def cuda_graph(function: Function) -> Replay:
    """A CUDA graph of the function, which is called several times first. See ``RefusingHost`` for what it may not do.

    Raises:
        RuntimeError: CUDA cannot record it.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()

    def replay(_kept: Function = function) -> None:  # with the function, the tensors that it reads are kept
        graph.replay()

    return replay


def operations(function: Function) -> Replay:
    """The operations of one call of the function on the CPU, to be computed again in the same tensors."""
    with _Noting() as noted:
        function()

    @torch.no_grad()
    def replay() -> None:
        for operation, args, kwargs, kept in noted.calls:
            for old, new in zip(tree_leaves(kept), tree_leaves(operation(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)

    return replay


class RefusingHost(TorchDispatchMode):
    """Within: what a recording cannot repeat raises ``NotRecordable``.

    That is: values that are read on the host, shapes that depend on them, tensors that are made of Python's numbers or
    move between devices, and random numbers from torch's generators.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if why := _obstacle(func, args, kwargs):
            raise NotRecordable(f"{func} {why}")
        return func(*args, **kwargs)


class _Noting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if not _is_view(func):  # a view of a tensor that stays is a view of its next values, too
            self.calls.append((func, args, kwargs, found))
        return found


def _is_view(func: Any) -> bool:
    returned = func._schema.returns
    aliases = returned and all(r.alias_info is not None and not r.alias_info.is_write for r in returned)
    return aliases or torch.Tag.inplace_view in func.tags


def _obstacle(func: Any, args: Any, kwargs: Any) -> str:
    """Why a recording cannot repeat an operation; empty if it can."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    if torch.Tag.data_dependent_output in func.tags:
        return "reads a value on the host"
    if torch.Tag.dynamic_output_shape in func.tags and not _by_integers(func, args):
        return "has a shape that depends on values"
    if torch.Tag.nondeterministic_seeded in func.tags:
        return "draws from a generator of torch's"
    if func in _MAKES:
        return "makes a tensor of numbers"
    kinds = {t.device.type for t in tensors}
    if func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None:
        kinds.add(torch.device(kwargs["device"]).type)
    return "copies to another device" if len(kinds) > 1 and func in _COPIES else ""


def _by_integers(func: Any, args: Any) -> bool:
    """Whether it is an index of integers; masks have shapes that depend on values."""
    if func.overloadpacket is not torch.ops.aten.index:
        return False
    return not any(t.dtype in (torch.bool, torch.uint8) for t in args[1] if t is not None)
