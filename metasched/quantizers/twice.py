"""The gradient that a stair sends back, with its own derivative in closed form; hypergradients differentiate it.

With z_k = (x - mu - theta_k) / s, the density f of the noise and the gradient g that arrives:

    p = g D,    D = sum_k d_k f(z_k) / s,    B = sum_k d_k f'(z_k) / s^2,    W = sum_k d_k z_k f'(z_k) / s

    dp/dg = D,    dp/dx = g B,    dp/dmu = -g B,    dp/ds = -g (D + W) / s

B and W are computed where p is differentiated, so that nothing is kept for them. A third derivative is that of the
differentiable operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from metasched.core.twice import differentiable
from metasched.quantizers.constants import constants
from metasched.quantizers.levels import LevelSet
from metasched.quantizers.noise import NOISE_FAMILIES

Slope = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # D of x, mean and scale

# f'(z) from z and f(z), as automatic differentiation of the densities has it; None: 0 but where f jumps
_BENDS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None] = {
    "uniform": None,
    "triangular": lambda z, f: (z * f).sign_().neg_(),
    "normal": lambda z, f: (z * f).neg_(),
    "logistic": lambda z, f: (z / 2).tanh_().mul_(f).neg_(),
}


def times_slope(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    inverse: torch.Tensor,
    levels: LevelSet,
    family: str,
    slope: Slope,
) -> torch.Tensor:
    """The gradient times the stair's derivative in x, g D.

    Args:
        grad: g, with the shape and dtype of x.
        x: [...], any floating dtype.
        mean, scale: of the noise, 0-d or broadcastable to x.
        inverse: 1 / s, and 0 where there is no noise; detached, with the shape of ``scale``.
        levels: the level set.
        family: a key of NOISE_FAMILIES.
        slope: the same D by differentiable operations.

    Returns:
        shape and dtype of x: the bits of ``grad * slope(x, mean, scale)``.
    """
    return _TimesSlope.apply(grad, x, mean, scale, inverse, levels, family, slope)  # pyright: ignore[reportReturnType]


class _TimesSlope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        grad: torch.Tensor,
        x: torch.Tensor,
        mean: torch.Tensor,
        scale: torch.Tensor,
        inverse: torch.Tensor,
        levels: LevelSet,
        family: str,
        slope: Slope,
    ) -> torch.Tensor:
        ctx.slope = slope
        ctx.levels, ctx.family = levels, family
        ctx.save_for_backward(grad, x, mean, scale, inverse)
        return grad * _sums(x - mean, inverse, levels, family, bends=False)[0]

    @staticmethod
    def backward(ctx: Any, v: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        grad, x, mean, scale, inverse = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():

            def product(grad: torch.Tensor, *place: torch.Tensor) -> list[torch.Tensor]:
                return [grad * ctx.slope(*place)]

            return *differentiable(product, (grad, x, mean, scale), needs, [v]), None, None, None, None
        bends = any(needs[1:])
        d, b, w = _sums(x - mean, inverse, ctx.levels, ctx.family, bends=bends, weighted=needs[3])
        of_grad = v * d if needs[0] else None
        of_x = of_mean = of_scale = None
        if bends:
            pulled = v * grad
            if needs[3]:
                of_scale = -((d if w is None else w.add_(d)) * pulled).sum_to_size(scale.shape) * inverse
            if b is not None and (needs[1] or needs[2]):
                of_x = pulled.mul_(b)
                of_mean = -of_x.sum_to_size(mean.shape) if needs[2] else None
        return of_grad, of_x, of_mean, of_scale, None, None, None, None


def _sums(
    centred: torch.Tensor, inverse: torch.Tensor, levels: LevelSet, family: str, *, bends: bool, weighted: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """D; with ``bends`` B (None: 0), and with ``weighted`` W (None: 0), too."""
    pdf, bend = NOISE_FAMILIES[family].pdf, _BENDS[family] if bends else None
    d = b = w = None
    for theta, jump in zip(constants(levels.thresholds, centred), levels.jumps, strict=True):
        z = (centred - theta).mul_(inverse)
        f = pdf(z)
        if bend is not None:
            slope = bend(z, f) if jump == 1 else bend(z, f).mul_(jump)
            if weighted:
                w = z.mul_(slope) if w is None else w.add_(z.mul_(slope))
            b = slope if b is None else b.add_(slope)
        f = f if jump == 1 else f.mul_(jump)
        d = f if d is None else d.add_(f)
    assert d is not None
    d.mul_(inverse)
    if b is not None:
        b.mul_(inverse).mul_(inverse)
    if w is not None:
        w.mul_(inverse)
    return d, b, w
