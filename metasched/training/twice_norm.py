"""Batch normalization whose gradient is differentiated in closed form, in fewer operations than torch takes.

With M values of a channel, r = 1 / sqrt(var + eps), x^ = (x - mean) r, and P(u) = u - mean(u) - x^ mean(u x^), a
gradient g that arrives gives the gradients

    g_x = gamma r P(g),    g_gamma = sum g x^,    g_beta = sum g

and for derivatives v, v_gamma and v_beta in these three, with A = mean(v x^), B = mean(g x^), C = mean(v P(g)):

    in g      gamma r P(v) + v_gamma x^ + v_beta
    in gamma  r M C
    in x      -gamma r^2 (C x^ + B P(v) + A P(g)) + v_gamma r P(g)

so that each is a combination of g, v and x with coefficients of the channel. Source: our own derivation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from metasched.core.twice import differentiable

_backward = torch.ops.aten.native_batch_norm_backward.default


def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """``F.batch_norm`` by the statistics of the batch: the same bits, and first derivatives of the same bits.

    Args:
        x: [N, C, ...], on the CPU.
        weight, bias: gamma and beta, [C].
        mean, var: running statistics, [C], which change in place; or None.
        momentum, eps: see there.
    """
    return _Norm.apply(x, weight, bias, mean, var, momentum, eps)  # pyright: ignore[reportReturnType]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        mean: torch.Tensor | None,
        var: torch.Tensor | None,
        momentum: float,
        eps: float,
    ) -> torch.Tensor:
        y, own, r = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
        ctx.save_for_backward(x, weight, own, r)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        return *_Gradient.apply(g, *ctx.saved_tensors, ctx.eps), None, None, None, None  # pyright: ignore


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        g: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        mean: torch.Tensor,
        r: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, ...]:
        found = _backward(g, x, weight, None, None, mean, r, True, eps, [True, True, True])
        ctx.save_for_backward(g, x, weight, mean, r, *found[1:])
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    def backward(ctx: Any, *seeds: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        g, x, weight, mean, r, g_weight, g_bias = ctx.saved_tensors
        v, v_weight, v_bias = seeds
        if torch.is_grad_enabled() or v is None:

            def first(g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
                bias = torch.zeros_like(weight).requires_grad_()
                y = F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
                return torch.autograd.grad(y, [x, weight, bias], g, create_graph=True)

            return *differentiable(first, (g, x, weight), ctx.needs_input_grad[:3], seeds), None, None, None
        of_g, v_normed, v_sum = _backward(v, x, weight, None, None, mean, r, True, ctx.eps, [True, True, True])
        size = x[0, 0].numel()
        m = len(x) * size
        products = (v * g).reshape(len(x), -1).sum(0).reshape(-1, size).sum(1)
        b, a = g_weight / m, v_normed / m
        of_weight = (products - v_sum * g_bias / m).addcmul_(v_normed, b, value=-1).mul_(r)
        steep = weight * r * r
        on_v = -steep * b
        on_g = -steep * a if v_weight is None else torch.addcmul(v_weight * r, steep, a, value=-1)
        on_x = -(steep / m * of_weight + r * (on_g * b + on_v * a))
        rest = -((on_g * g_bias + on_v * v_sum) / m + on_x * mean)
        rows = [rest, on_v, on_g, on_x]
        if v_weight is not None:
            tilt = v_weight * r
            rows += [tilt, (torch.zeros_like(tilt) if v_bias is None else v_bias) - tilt * mean]
        elif v_bias is not None:
            of_g.add_(v_bias.reshape(-1, *[1] * (x.dim() - 2)))
        # a coefficient for each element of an example: rows of few elements would be slow
        of_one, *of_others = torch.stack(rows).unsqueeze(2).expand(-1, -1, size).reshape(len(rows), *x.shape[1:])
        of_x = torch.addcmul(of_one, v, of_others[0]).addcmul_(g, of_others[1]).addcmul_(x, of_others[2])
        if v_weight is not None:
            of_g.addcmul_(x, of_others[3]).add_(of_others[4])
        return of_g, of_x, of_weight, None, None, None
