"""Gradients of a method's trainable tensors, multiplied by its factors on the way to the optimizer."""

from __future__ import annotations

from typing import Any

import torch


class _Damped(torch.autograd.Function):
    """The identity whose gradient is multiplied by a factor [...] of its shape."""

    @staticmethod
    def forward(ctx: Any, p: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(factor)
        return p.view_as(p)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore
        return grad * ctx.saved_tensors[0], None


def damped(p: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """P [...], whose gradient ``backward`` multiplies by a factor that broadcasts to it."""
    return _Damped.apply(p, factor)  # pyright: ignore[reportReturnType]
