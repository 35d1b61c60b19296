"""The hard quantizer with a straight-through derivative of fixed width.

    forward    Q(x), the hard quantizer
    backward   dQ/dx := sum_k d_k f((x - theta_k) / h) / h,   f the density of uniform noise on [-1, 1]

For levels at equal distances d and h = d / 2 the windows join: the derivative is 1 between the outermost levels, 1/2 on
them and 0 beyond (clipped straight-through, Hubara et al., 2016, arXiv 1602.02830).
"""

from __future__ import annotations

from typing import Any

import torch

from metasched.quantizers.functions import caller
from metasched.quantizers.hard import hard
from metasched.quantizers.levels import LevelSet
from metasched.quantizers.stair import slope


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
    return _straight_through(x, levels, half_width)


class _StraightThrough(torch.autograd.Function):
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


_straight_through = caller(_StraightThrough)


def _slope(x: torch.Tensor, levels: LevelSet, half_width: float) -> torch.Tensor:
    x, joined = x.detach(), levels.even == 2 * half_width
    if not joined:
        width = torch.full((), half_width, dtype=x.dtype, device=x.device)
        return slope(x, width, levels, "uniform")
    first, last = levels.levels[0], levels.levels[-1]
    outside = x.abs().sub_(last) if first == -last else torch.maximum(first - x, x - last)
    # 0, 1/2 or 1 by the sign; takes a fifth of the time of comparisons
    return outside.mul_(-torch.finfo(x.dtype).max).clamp(-0.5, 0.5).add_(0.5)
