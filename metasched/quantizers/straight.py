"""The hard quantizer with a straight-through derivative of fixed width.

    forward    Q(x), the hard quantizer
    backward   dQ/dx := sum_k d_k f((x - theta_k) / h) / h,   f the density of uniform noise on [-1, 1]

For levels at equal distances d and h = d / 2 the windows join: the derivative is 1 between the outermost levels, 1/2 on
them and 0 beyond (clipped straight-through, Hubara et al., 2016, arXiv 1602.02830).
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch

from metasched.quantizers.levels import LevelSet
from metasched.quantizers.stair import hard, slope


def straight_through(x: torch.Tensor, levels: LevelSet, half_width: float) -> torch.Tensor:
    """The hard quantizer with a straight-through derivative: that of the stair under uniform noise.

    For ternary levels and half-width 1/2 this is the derivative of clip(x, -1, 1).

    Args:
        x: [...], any floating dtype, in units of the scale.
        levels: the level set.
        half_width: of the uniform noise, in units of the scale; > 0.

    Returns:
        shape and dtype of x.

    >>> from metasched.quantizers.levels import ternary
    >>> x = torch.tensor([-1.2, 0.3], requires_grad=True)
    >>> straight_through(x, ternary(), 0.5).sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0]
    """
    return _Hard.apply(x, levels, half_width)  # pyright: ignore[reportReturnType]


class _Hard(torch.autograd.Function):
    """``backward`` consists of differentiable operations, so that derivatives of any order are exact."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, levels: LevelSet, half_width: float) -> torch.Tensor:
        return hard(x, levels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, ctx.levels, ctx.half_width = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> torch.Tensor:  # pyright: ignore
        (x,) = ctx.saved_tensors
        if tangents[0] is None:
            return torch.zeros_like(x)
        return _slope(x, ctx.levels, ctx.half_width) * tangents[0]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return grad * _slope(x, ctx.levels, ctx.half_width), None, None


# torch reads the signature in each call, and computing it takes longer than several of the operations
_Hard.forward.__signature__ = inspect.signature(_Hard.forward)  # pyright: ignore[reportFunctionMemberAccess]


def _slope(x: torch.Tensor, levels: LevelSet, half_width: float) -> torch.Tensor:
    x, jump = x.detach(), levels.jumps[0]
    if jump != 2 * half_width or math.frexp(jump)[0] != 0.5 or any(d != jump for d in levels.jumps):
        width = torch.full((), half_width, dtype=x.dtype, device=x.device)
        return slope(x, width, levels, "uniform")
    first, last = levels.levels[0], levels.levels[-1]
    if first == -last:
        return ((last - x.abs()).sign() + 1) * 0.5
    return ((x - first).sign() + (last - x).sign()) * 0.5
