"""Multiply-accumulates of a pass, by the weight that they multiply with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

PRODUCTS = ""  # the key of those without a weight: products of activations, as in attention


def operations(module: nn.Module, run: Callable[[nn.Module], object]) -> Counter[str]:
    """Number of multiply-accumulates of one pass, by name of the parameter; ``PRODUCTS`` are those of two activations.

    Counted are convolutions, matrix products and attention, by torch's own formulas
    (``torch.utils.flop_counter``), which count two operations for each.

    Args:
        module: is run in its present mode, without gradients.
        run: runs the pass.
    """
    counting = _Counting({p.untyped_storage().data_ptr(): name for name, p in module.named_parameters() if p.dim() > 1})
    with torch.no_grad(), without_fused_layers(), counting:
        run(module)
    return counting.found


class _Counting(TorchDispatchMode):
    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names, self.found = names, Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                found = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if found is NotImplemented else found
        out = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        known = (self.names.get(t.untyped_storage().data_ptr()) for t in tensors if t.dim() > 1)
        name = next((name for name in known if name is not None), PRODUCTS)
        self.found[name] += formula(*args, **kwargs, out_val=out) // 2
        return out


@contextmanager
def without_fused_layers() -> Iterator[None]:
    """Torch's fused transformer layers hide what they compute."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
