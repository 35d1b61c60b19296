"""A network as the graph that torch.export records, where torch.fx cannot trace it."""

from __future__ import annotations

import inspect
import io
import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils._pytree import tree_map

from metasched.core.errors import MetaschedWarning
from metasched.network.graphs import Stairs, prepared


def exported(network: nn.Module, stairs: Stairs, given: tuple[tuple[Any, ...], dict[str, Any]]) -> nn.Module:
    """The network in eval mode as one graph for inputs like ``given``; it is used up.

    Sizes are those of ``given`` where the network's code depends on them, and any others elsewhere. The graph checks
    the fixed ones; a warning names them. Raises what torch.export raises where it cannot record the network.
    """
    prepared(network, network, stairs)
    args, kwargs = given
    bound = dict(inspect.signature(network.forward).bind(*args, **kwargs).arguments)
    # without gradients torch takes fused paths of its own
    with warnings.catch_warnings(), torch.enable_grad(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, args, kwargs, dynamic_shapes=tree_map(_any_size, bound), strict=False)
        recorded = program.module(check_guards=False)  # whose own check cannot be pickled
    fixed = _check_sizes(recorded.graph)
    made = fx.GraphModule(recorded, recorded.graph, type(network).__name__)
    before = dict(network.named_modules())
    for name, m in made.named_modules():
        if "quantization" in vars(before.get(name, made)):
            m.quantization = before[name].quantization
    sizes = f"; sizes that are fixed: {', '.join(fixed)}" if fixed else ""
    what = f"the network is converted to a graph of torch.export, which has one sequence of operations{sizes}"
    warnings.warn(f"convert: {what}", MetaschedWarning, stacklevel=4)
    return made.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch logs and prints, whole graphs, before an error that has the reason in a line."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _any_size(leaf: Any) -> Any:
    return dict.fromkeys(range(leaf.dim()), torch.export.Dim.AUTO) if isinstance(leaf, torch.Tensor) else None


def _check_sizes(graph: fx.Graph) -> list[str]:
    """Lets a graph assert the sizes that are fixed; returns them in words."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    fixed = []
    with graph.inserting_after(inputs[-1]):
        for node in reversed(inputs):
            value = node.meta.get("val")
            for i, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                if is_concrete_int(size):
                    said = f"dimension {i} of {node.name} is {int(size)}"
                    fixed.append(said)
                    found = graph.call_function(torch.ops.aten.sym_size.int, (node, i))
                    with graph.inserting_after(found):
                        same = graph.call_function(operator.eq, (found, int(size)))
                        with graph.inserting_after(same):
                            graph.call_function(torch._assert, (same, f"the network was converted where {said}"))
    return fixed
