"""Vector-Jacobian products without the part of torch that torch.autograd.grad imports for ``grad_outputs``.

Given ``grad_outputs``, torch.autograd.grad compares shapes with torch.fx.experimental.symbolic_shapes, which imports
sympy: about a quarter of the start of a short run. A scalar whose derivative in each output is the given vector needs
none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable


class _Product(torch.autograd.Function):
    """A zero whose derivative in each output is the seed of that output."""

    @staticmethod
    def forward(ctx: Any, seeds: Sequence[torch.Tensor], *outputs: torch.Tensor) -> torch.Tensor:
        ctx.seeds = seeds
        return outputs[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        return None, *ctx.seeds


def vector_jacobian(
    outputs: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    seeds: Sequence[torch.Tensor],
    *,
    retain_graph: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    """sum_i seeds_i^T d outputs_i / d inputs_j for each input j, the bits of torch.autograd.grad; None where unused.

    Args:
        outputs: one or more tensors [...] that need a gradient.
        inputs: tensors of the graph of ``outputs``.
        seeds: for each output a tensor of its shape and dtype.
        retain_graph: keep the graph for another product.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> vector_jacobian([x * x], [x], [torch.tensor([1.0, 10.0])])
    (tensor([ 2., 40.]),)
    """
    assert [o.shape for o in outputs] == [s.shape for s in seeds], ([o.shape for o in outputs], seeds)
    with torch.enable_grad():  # callers lie on the way back of another graph
        total = _Product.apply(tuple(seeds), *outputs)
    return torch.autograd.grad(total, list(inputs), allow_unused=True, retain_graph=retain_graph)  # pyright: ignore
