"""How the example pass is followed: tags on tensors, hooks on modules, and a mode for torch functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from metasched.network.flow import Example, Flow, Unit, Use, layer_name, run_example
from metasched.network.inputs import Inputs
from metasched.network.kinds import BY_FUNCTION, ActivationKind, activation_kind, weight_kind, weights_of

_INPUT = ""  # the tag of the network's inputs
_OTHERS = "glu softsign logsigmoid threshold tanhshrink softshrink hardshrink rrelu".split()
_OTHER_FUNCTIONS = frozenset(name + end for name in _OTHERS for end in ("", "_"))
_LAYERS = frozenset(
    ("linear", "embedding", *(f"conv{end}{n}d" for end in ("", "_transpose") for n in (1, 2, 3)))
)  # functions that may read the weight of a layer that is not called
_PRODUCTS = frozenset(("mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__", "lerp", "addcmul"))


def flow_of(module: nn.Module, example: Example) -> Flow:
    """Runs a module on an example, in eval mode and without gradients; of several passes the first one counts."""
    tracing = _Tracing(module)
    module.eval()
    with torch.no_grad(), _buffers_kept(module), tracing.hooked(module), tracing:
        run_example(module, example)
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


class _Frame(NamedTuple):
    name: str
    module: nn.Module
    calls: Counter[str]
    use: Use | None  # of an activation module


class _Tracing(TorchFunctionMode):
    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.flow = Flow()
        self.done = False
        self.stack = [_Frame("", root, Counter(), None)]
        self.weights: dict[int, list[tuple[str, str]]] = {}  # weight -> its layers, by module and name there
        for name, m in root.named_modules():
            for key in weights_of(m):
                if (p := m._parameters.get(key)) is not None:
                    self.weights.setdefault(id(p), []).append((name, key))
        self.tags = WeakIdKeyDictionary()  # tensor -> names of the nearest layers and activations
        self.in_place: dict[int, tuple[Use, torch.UntypedStorage]] = {}  # what an activation has rewritten, by address

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
        self.flow.modules.add(name)
        use = None
        kind = activation_kind(module)
        if kind is not None and not self._inside():
            use = self._used(name, kind, module=True)
            self._takes(use, (args, kwargs))
        self.stack.append(_Frame(name, module, Counter(), use))
        if not name:
            given = Inputs(args, kwargs)
            self.flow.inputs = given if given.known else None
            for tensor in _tensors((args, kwargs)):
                self.tags[tensor] = frozenset((_INPUT,))
        for unit, weight in _layers(name, module):
            self._takes(unit, (args, kwargs))
            self.flow.layers.setdefault(unit, (name, weight))

    def leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        if self.done:
            return None
        use = self.stack.pop().use
        units: list[Unit] = [unit for unit, _ in _layers(name, module)] if use is None else [use]
        out = f"{name}.out_proj" if isinstance(module, nn.MultiheadAttention) else None
        if out is not None and weights_of(module.out_proj):  # pyright: ignore  # which is not called as a module
            self.flow.layers.setdefault(out, (out, "weight"))
            self.flow.sources.setdefault(out, frozenset())
            self.flow.modules.add(out)
            units.append(out)
        if not units:
            return None
        self._puts(units)
        with torch._C.DisableTorchFunction():
            if use is not None and inputs and output is inputs[0]:
                output = self._rewrote(use, output)
        for tensor in _tensors(output):
            self.tags[tensor] = frozenset(units[-1:])
        return output

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.done:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        inputs = _tensors((args, kwargs))
        kind = BY_FUNCTION.get(name) if inputs and not self._inside() else None
        if kind is not None:
            use = self._used(name.rstrip("_"), kind, module=False)
            self._takes(use, inputs[:1])
            found = func(*args, **kwargs)
            self._puts([use])
            with torch._C.DisableTorchFunction():
                if found is inputs[0]:
                    found = self._rewrote(use, found)
            self.tags[found] = frozenset((use,))
            return found
        if name in _LAYERS and (read := self._read(inputs)) is not None:
            unit = layer_name(*read)
            self.flow.layers.setdefault(unit, read)
            self.flow.modules.add(read[0])
            self._takes(unit, [t for t in inputs if id(t) not in self.weights])
            found = func(*args, **kwargs)
            self._puts([unit])
            self.tags[found] = frozenset((unit,))
            return found
        sources = self._sources(inputs)
        if name in _OTHER_FUNCTIONS:
            frame = self.stack[-1]
            self.flow.functions[f"{frame.name or 'model'} ({type(frame.module).__name__}, {name})"] = None
        if name in _PRODUCTS and len(inputs) > 1 and all(t.numel() > 1 for t in inputs):
            self._multiplied([self._sources([t]) for t in inputs])
        found = func(*args, **kwargs)
        outputs = _tensors(found)
        if outputs:  # reading a shape is no use of the values
            self.flow.reused.update(use for t in inputs if (use := self._rewritten(t)))
        for tensor in outputs:
            self.tags[tensor] = sources
        return found

    def _read(self, inputs: list[torch.Tensor]) -> tuple[str, str] | None:
        """The layer, with its weight, that a function reads while the layer itself is not called."""
        running = {frame.name for frame in self.stack}
        for layers in (self.weights[id(t)] for t in inputs if id(t) in self.weights):
            if running.isdisjoint(name for name, _ in layers):
                return layers[0]
        return None

    def _inside(self) -> bool:
        """Whether an activation module runs, whose own functions are its affair."""
        return any(frame.use is not None for frame in self.stack)

    def _used(self, what: str, kind: ActivationKind, *, module: bool) -> Use:
        frame = self.stack[-1]
        key = f"{what}{'' if module else '()'}"
        use = Use(frame.name, what, module, frame.calls[key])
        frame.calls[key] += 1
        self.flow.kinds.setdefault(use, kind)
        return use

    def _takes(self, unit: Unit, inputs: Any) -> None:
        sources = self._sources(inputs)
        self.flow.lost |= not sources
        self.flow.sources.setdefault(unit, sources - {_INPUT})
        self.flow.feeds |= sources

    def _puts(self, units: list[Unit]) -> None:
        self.flow.ran.extend(unit for unit in units if unit not in self.flow.ran)

    def _multiplied(self, factors: list[frozenset[Unit]]) -> None:
        """Notes gates: of kinds between 0 and 1; or others, where the other factor comes from a layer (GLU)."""
        for i, sources in enumerate(factors):
            others = frozenset(unit for j, other in enumerate(factors) if j != i for unit in other)
            layer = any(isinstance(unit, str) and unit for unit in others)
            layer = layer and not any(isinstance(unit, Use) for unit in others)
            for unit in sources:
                if isinstance(unit, Use) and (self.flow.kinds[unit].gate or layer):
                    self.flow.gates.add(unit)

    def _rewrote(self, use: Use, output: torch.Tensor) -> torch.Tensor:
        """Notes that an activation has worked in place; returns a copy, so that another use of the input is seen."""
        self.tags[output] = frozenset((use,))
        storage = output.untyped_storage()
        self.in_place[storage.data_ptr()] = use, storage
        return output.clone()

    def _rewritten(self, tensor: torch.Tensor) -> Use | None:
        """The activation in place that has rewritten the memory of a tensor."""
        if not self.in_place or tensor.layout != torch.strided:
            return None
        return self.in_place.get(tensor.untyped_storage().data_ptr(), (None,))[0]

    def _sources(self, inputs: Any) -> frozenset[Unit]:
        found: frozenset[Unit] = frozenset()
        for tensor in _tensors(inputs):
            found |= self.tags.get(tensor) or frozenset()
        return found


def _layers(name: str, module: nn.Module) -> list[tuple[str, str]]:
    """Name of each layer that a module is, with the name of its weight in the module."""
    if weight_kind(module) is None:
        return []
    return [(layer_name(name, weight), weight) for weight in weights_of(module)]


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
