"""The operations of a network in the order in which they run, and what each of them reads; traced by torch.fx."""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

from torch import fx, nn

from metasched.deploy.folding import unsupported
from metasched.deploy.operations import CLIPS, IN_PLACE, Bounded, Operation, Sum, is_sum, of_function
from metasched.network.recomputing import keeps_outputs


class Step(NamedTuple):
    """One operation.

    Attributes:
        name: of its module, or where the model's code computes it.
        operation: a module, also where the model calls a function that does the same.
        inputs: indices of the steps that it reads, -1 for the images.
    """

    name: str
    operation: Operation
    inputs: tuple[int, ...]


def flow(network: nn.Module) -> list[Step]:
    """The steps of a network from its images to its output, which is that of the last step.

    Raises:
        MetaschedError: it cannot be traced, has hooks or a forward of one instance, calls a layer twice, or computes
            something that is no known operation of one or two tensors.
    """
    _check(network, "")
    if _is_leaf(network):
        return [Step("", network, (-1,))]
    try:
        graph = _Tracer().trace(network)
    except Exception as error:  # whatever the model's forward raises
        raise unsupported("", f"cannot be traced ({type(error).__name__}: {error})") from error
    modules, at, steps = dict(network.named_modules(remove_duplicate=False)), dict[fx.Node, int](), list[Step]()
    called, bounded = set[str](), dict[fx.Node, tuple[float, float]]()
    for node in graph.nodes:
        if node.op == "output":
            break
        name = _name(node)
        if node.op == "placeholder" and -1 not in at.values():
            at[node] = -1
            continue
        if not node.users:
            raise unsupported(name, f"computes {_function(node)}, which is not used")
        users = list(node.users)
        if (bounds := _bounds(node, modules)) and len(users) == 1 and _quantizes(users[0], modules):
            at[node], bounded[users[0]] = at[node.args[0]], bounds  # the activation bounds its input itself
            continue
        if node.op == "call_module":
            operation = modules[name]
            if name in called and any(True for _ in (*operation.parameters(), *operation.buffers())):
                raise unsupported(name, "is in the network twice", "give each place a module of its own")
            called.add(name)
            inputs = list(node.args) if not node.kwargs else []
        else:
            operation, inputs = of_function(node)
        wanted = 2 if isinstance(operation, Sum) else 1
        if operation is None or len(inputs) != wanted or not all(isinstance(x, fx.Node) and x in at for x in inputs):
            raise unsupported(name, f"computes {_function(node)}, which has no integer form")
        if _rewrites(node, operation) and not _owned(inputs[0], modules):
            raise unsupported(name, f"changes a tensor in place that may be used again ({_function(node)})")
        if node in bounded and isinstance(operation, nn.Module):
            operation = Bounded(operation, *bounded[node])
        at[node] = len(steps)
        steps.append(Step(name, operation, tuple(at[x] for x in inputs)))
    result = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    if not isinstance(result, fx.Node) or at[result] != len(steps) - 1:
        raise unsupported("", "does not end with one tensor of class scores", "return the class scores alone")
    return steps


class _Proxy(fx.Proxy):
    """Records ``x += y`` as what it is; torch.fx takes it for ``x = x + y``, which leaves other names of x alone."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for the output of a node."""
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one operation."""
        return _is_leaf(m)


def _is_leaf(m: nn.Module) -> bool:
    if hasattr(m, "quantization"):
        return True
    of_torch = type(m).__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)
    return of_torch or not any(True for _ in m.children())


def _check(m: nn.Module, name: str) -> None:
    """Refuses what a module does besides its forward."""
    if any(not keeps_outputs(hook) for hook in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())):
        raise unsupported(name, "has hooks, which may change what it computes", "remove them before")
    if "forward" in vars(m):
        raise unsupported(name, "has a forward of its own instance, which may compute anything")
    if not _is_leaf(m):
        for key, child in m.named_children():
            _check(child, f"{name}.{key}" if name else key)


def _bounds(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[float, float] | None:
    """The bounds of an activation function of one tensor, which works on a tensor of its own."""
    if len(node.args) != 1 or node.kwargs.get("inplace"):
        return None
    if node.op == "call_module":
        m = modules[str(node.target)]
        if isinstance(m, nn.Hardtanh):  # ReLU6 is one
            return None if m.inplace else (m.min_val, m.max_val)
        return (0.0, math.inf) if type(m) is nn.ReLU and not m.inplace else None
    return CLIPS.get(node.target)


def _quantizes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a quantized activation without a function of its own."""
    q = getattr(modules[str(node.target)], "quantization", None) if node.op == "call_module" else None
    return isinstance(q, dict) and q.get("clip") == (-math.inf, math.inf)


def _name(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack") or {})
    return ".".join(filter(None, [stack[-1] if stack else "", node.name]))


def _function(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


_MAKE = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, fx.GraphModule)  # tensors of their own
_HAND_ON = (nn.Identity, nn.Dropout)  # in eval mode the tensor that they get


def _rewrites(node: fx.Node, operation: Operation) -> bool:
    if isinstance(operation, fx.GraphModule):
        return any(inner.target == "copy_" for inner in operation.graph.nodes)
    return node.target in IN_PLACE


def _owned(x: Any, modules: dict[str, nn.Module]) -> bool:
    """Whether nothing else reads the memory of a tensor."""
    if len(x.users) > 1:
        return False
    if x.op != "call_module":
        return is_sum(x)
    module = modules[x.target]
    return _owned(x.args[0], modules) if isinstance(module, _HAND_ON) else isinstance(module, _MAKE)
