"""The hard quantizer with a surrogate derivative of scheduled width.

    forward    Q(x), the hard quantizer
    backward   dQ/dx := sum_k d_k f((x - theta_k) / s) / s,   s = width * unit

f is the density of a noise family (noise.py), theta_k are the thresholds and d_k the jumps of the levels. The width
does not enter the forward pass, so it gets no gradient in a plain backward pass; it enters the gradient of x. A
hypergradient, which differentiates gradients, passes through it exactly.

Source: the surrogate derivatives of ANA (Spallanzani et al., CVPR 2022, arXiv 2203.11323) and of spiking networks
(Neftci, Mostafa, Zenke, IEEE Signal Processing Magazine 36(6), 2019, arXiv 1901.09948). We differ: the forward pass is
hard for any width, and the width is a control.
"""

from __future__ import annotations

from typing import Any

import torch

from metasched.core.twice import closed
from metasched.quantizers.functions import caller
from metasched.quantizers.hard import hard
from metasched.quantizers.levels import LevelSet
from metasched.quantizers.noise import NOISE_FAMILIES
from metasched.quantizers.stair import slope, times


def hard_with_width(x: torch.Tensor, levels: LevelSet, width: torch.Tensor, family: str) -> torch.Tensor:
    """The hard quantizer, whose derivative is that of the stair under noise of this half-width.

    Args:
        x: [...], any floating dtype, in units of the scale.
        levels: the level set.
        width: half-width of the noise in units of the scale, 0-d, > 0.
        family: a key of NOISE_FAMILIES.

    Returns:
        shape and dtype of x.

    >>> from metasched.quantizers.levels import ternary
    >>> x = torch.tensor([-1.2, 0.3], requires_grad=True)
    >>> hard_with_width(x, ternary(), torch.tensor(0.5), "uniform").sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0]
    """
    return _hard_with_width(x, width * NOISE_FAMILIES[family].unit, levels, family)


class _HardWithWidth(torch.autograd.Function):
    """``backward`` consists of differentiable operations, so that derivatives of any order are exact."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, scale: torch.Tensor, levels: LevelSet, family: str) -> torch.Tensor:
        return hard(x, levels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, scale, ctx.levels, ctx.family = inputs
        ctx.save_for_backward(x, scale)
        ctx.save_for_forward(x, scale)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> torch.Tensor:  # pyright: ignore
        x, scale = ctx.saved_tensors
        if tangents[0] is None:
            return torch.zeros_like(x)
        return slope(x, scale, ctx.levels, ctx.family) * tangents[0]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        x, scale = ctx.saved_tensors
        if closed():
            return times(grad, x, torch.zeros_like(scale), scale, ctx.levels, ctx.family), None, None, None
        return grad * slope(x, scale, ctx.levels, ctx.family), None, None, None


_hard_with_width = caller(_HardWithWidth)
