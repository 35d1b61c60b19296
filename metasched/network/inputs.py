"""The inputs of a pass without their values: what a converted network is traced with, and checked on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

_VALUES = bool, int, float, str, type(None), torch.dtype, torch.device


class Shape(NamedTuple):
    """A tensor without its values."""

    sizes: tuple[int, ...]
    dtype: torch.dtype


class _Hidden:
    """A ``Shape`` in a tree, whose leaf it shall be."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape


class Inputs:
    """Arguments of a pass; tensors are known by sizes and dtype.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.args, self.kwargs = tree_map(_without_values, (args, dict(kwargs)))

    @property
    def known(self) -> bool:
        """Whether all arguments are tensors and plain values, which can be made again and pickled."""
        return all(isinstance(leaf, (_Hidden, *_VALUES)) for leaf in tree_leaves((self.args, self.kwargs)))

    def like(self, module: nn.Module, *, rows: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of these sizes: normal numbers, and zeros for integers, as the module's parameters have them.

        Args:
            module: its first floating parameter gives device and dtype of floating tensors.
            rows: size of the first dimension, [N, ...]; None: that of each tensor.
        """
        first = next(p for p in module.parameters() if p.is_floating_point())
        generator = torch.Generator().manual_seed(0)

        def made(leaf: Any) -> Any:
            if not isinstance(leaf, _Hidden):
                return leaf
            sizes, dtype = leaf.shape
            sizes = (rows, *sizes[1:]) if rows is not None and sizes else sizes
            if not dtype.is_floating_point:
                return torch.zeros(sizes, dtype=dtype, device=first.device)
            return torch.randn(sizes, generator=generator, dtype=torch.float32).to(first.device, first.dtype)

        return tree_map(made, (self.args, self.kwargs))

    @property
    def one_row(self) -> bool:
        """Whether the first dimension of each tensor is 1: a batch of one, which stands for batches of any size."""
        shapes = [leaf.shape for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, _Hidden)]
        return bool(shapes) and all(shape.sizes[:1] == (1,) for shape in shapes)


def _without_values(leaf: Any) -> Any:
    return _Hidden(Shape(tuple(leaf.shape), leaf.dtype)) if isinstance(leaf, torch.Tensor) else leaf
