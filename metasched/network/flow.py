"""The example pass: what of a model runs, in which order, and which layer feeds which activation.

Each tensor of the pass is tagged with the nearest layers and activations that it comes from. The tags follow torch
functions; where a model leaves torch (numpy, own C++ functions) they are lost, and the order of calls stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from metasched.core.errors import MetaschedError

Example = torch.Tensor | tuple[Any, ...] | Mapping[str, Any] | Callable[[Any], object]

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh),
    *(nn.Hardswish, nn.Mish),
)
_BASES = """
    relu relu6 leaky_relu elu selu celu gelu silu tanh sigmoid hardtanh hardswish hardsigmoid mish prelu rrelu glu
    softplus softsign logsigmoid threshold tanhshrink softshrink hardshrink
"""
_INPUT = ""  # the tag of the network's inputs
_FUNCTIONS = frozenset(name + end for name in _BASES.split() for end in ("", "_"))
_PRODUCTS = frozenset(("mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__", "lerp", "addcmul"))


@dataclass
class Flow:
    """What the first pass of an example ran.

    Attributes:
        ran: names and modules of layers and activations that can be quantized, in the order of the pass, each once.
        sources: layer or activation -> those that its input comes from; empty where that is not known.
        lost: whether something ran whose input does not come from that of the network, as far as is known.
        feeds: layers and activations whose output reaches another one.
        gates: activations whose output is multiplied with another tensor.
        reused: activations in place, whose input is used again under its old name.
        functions: activations that are no modules that can be replaced, as ``name (type)``.
    """

    ran: list[tuple[str, nn.Module]] = field(default_factory=list)
    sources: dict[str, frozenset[str]] = field(default_factory=dict)
    feeds: set[str] = field(default_factory=set)
    gates: set[str] = field(default_factory=set)
    reused: set[str] = field(default_factory=set)
    functions: dict[str, None] = field(default_factory=dict)
    lost: bool = False


def flow_of(module: nn.Module, example: Example) -> Flow:
    """Runs a module on an example, in eval mode and without gradients; of several passes the first one counts.

    Raises:
        MetaschedError: a layer or activation runs more than once in it.
    """
    tracing = _Tracing(module)
    module.eval()
    with torch.no_grad(), _buffers_kept(module), tracing.hooked(module), tracing:
        run_example(module, example)
    names = [name for name, _ in tracing.flow.ran]
    for name in names:
        if names.count(name) > 1:
            raise MetaschedError(
                f"model.{name}", "runs more than once in a forward pass", "give each use a module of its own"
            )
    return tracing.flow


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    buffers = [
        (m, name, b, None if b is None else b.clone()) for m in module.modules() for name, b in m._buffers.items()
    ]
    try:
        yield
    finally:
        for m, name, b, was in buffers:
            m._buffers[name] = b
            if b is not None and was is not None:
                b.copy_(was)


class _Tracing(TorchFunctionMode):
    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.flow = Flow()
        self.done = False
        self.stack: list[tuple[str, nn.Module]] = [("", root)]
        self.tags = WeakIdKeyDictionary()  # tensor -> names of the nearest layers and activations
        self.in_place: dict[int, tuple[str, torch.UntypedStorage]] = {}  # what an activation has rewritten, by address

    @contextmanager
    def hooked(self, root: nn.Module) -> Iterator[None]:
        hooks = []
        for name, m in root.named_modules():
            hooks.append(m.register_forward_pre_hook(partial(self.enter, name), with_kwargs=True))
            hooks.append(m.register_forward_hook(partial(self.leave, name)))
        hooks.append(root.register_forward_hook(lambda *_: setattr(self, "done", True)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.done:
            return
        self.stack.append((name, module))
        if not name:
            for tensor in _tensors((args, kwargs)):
                self.tags[tensor] = frozenset((_INPUT,))
        if isinstance(module, WEIGHTED + ACTIVATIONS):
            sources = self._sources((args, kwargs))
            self.flow.lost |= not sources
            self.flow.sources[name] = sources - {_INPUT}
            self.flow.feeds |= sources

    def leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        if self.done:
            return None
        self.stack.pop()
        if not isinstance(module, WEIGHTED + ACTIVATIONS):
            return None
        self.flow.ran.append((name, module))
        with torch._C.DisableTorchFunction():
            if inputs and output is inputs[0]:  # an activation in place: its input goes on under its old name
                self.tags[output] = frozenset((name,))
                storage = output.untyped_storage()
                self.in_place[storage.data_ptr()] = name, storage
                output = output.clone()  # so that another use of what was rewritten is seen
        for tensor in _tensors(output):
            self.tags[tensor] = frozenset((name,))
        return output

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.done:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        inputs = _tensors((args, kwargs))
        sources = self._sources(inputs)
        owner, module = self.stack[-1]
        if name in _FUNCTIONS and not isinstance(module, ACTIVATIONS):
            self.flow.functions[f"{owner or 'model'} ({type(module).__name__}, {name})"] = None
        if name in _PRODUCTS and len(inputs) > 1 and all(t.numel() > 1 for t in inputs):
            self.flow.gates |= sources
        found = func(*args, **kwargs)
        outputs = _tensors(found)
        if outputs:  # reading a shape is no use of the values
            self.flow.reused.update(name for t in inputs if (name := self._rewritten(t)))
        for tensor in outputs:
            self.tags[tensor] = sources
        return found

    def _rewritten(self, tensor: torch.Tensor) -> str | None:
        """The activation in place that has rewritten the memory of a tensor."""
        if not self.in_place or tensor.layout != torch.strided:
            return None
        return self.in_place.get(tensor.untyped_storage().data_ptr(), (None,))[0]

    def _sources(self, inputs: Any) -> frozenset[str]:
        found: frozenset[str] = frozenset()
        for tensor in _tensors(inputs):
            found |= self.tags.get(tensor) or frozenset()
        return found


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


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
