"""What functions share whose gradients have derivatives in closed form.

Such a function has a second one for its backward pass, whose own backward pass is the closed form: fewer operations
than a derivative of each operation of the first. Hypergradients differentiate gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad


def closed() -> bool:
    """Whether closed forms may be used: a graph is kept, for reverse mode alone (not torch.func, nor tangents)."""
    return (
        torch.is_grad_enabled()
        and forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def wanted(ctx: Any, i: int) -> bool:
    """Whether the backward pass that runs goes on to input i of the function of ``ctx``.

    It does not where torch.autograd.grad has no input there. ``i`` counts tensors only.
    """
    node = ctx.next_functions[i][0]
    leaf = node is not None and not node.next_functions
    return node is not None and (leaf or torch._C._will_engine_execute_node(node))


def differentiable(
    gradients: Callable[..., Sequence[torch.Tensor]],
    inputs: Sequence[torch.Tensor],
    needs: Sequence[bool],
    seeds: Sequence[torch.Tensor | None],
) -> list[torch.Tensor | None]:
    """The derivative of ``sum_i seeds_i . gradients(*inputs)_i`` by torch's operations, so that it has one itself.

    Args:
        gradients: by differentiable operations.
        inputs: what they are functions of, [...] each.
        needs: whether each input needs a derivative; the others get None.
        seeds: of the shapes of the gradients; None: 0.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        # as ends of their own: an input may depend on another one
        given = [t.view_as(t) if keep and t.requires_grad else t.detach().requires_grad_() for t in inputs]
        found = gradients(*given)
        pairs = [(g, v) for g, v in zip(found, seeds, strict=True) if v is not None and g.requires_grad]
        at = [t for t, need in zip(given, needs, strict=True) if need]
        if not pairs or not at:
            return [None] * len(needs)
        total = torch.stack([(g * v).sum() for g, v in pairs]).sum()
        slopes = iter(torch.autograd.grad(total, at, create_graph=keep, allow_unused=True))
    return [next(slopes) if need else None for need in needs]
