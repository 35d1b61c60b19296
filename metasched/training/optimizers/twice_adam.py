"""A step of Adam for all tensors at once, whose derivative is in closed form: a dozen operations for the whole network.

With g the gradient, b_i = 1 - beta_i, and

    m' = m + b_1 (g - m),    v' = v + b_2 (g^2 - v),    r = sqrt(max(v', tiny)),    D = r + eps,    p' = p + a m' / D

derivatives P, M and V in p', m' and v' give

    M* = M + a P / D,    V* = V - [v' > tiny] a P m' / (2 r D^2)

    in p  P,    in g  b_1 M* + 2 b_2 g V*,    in m  beta_1 M*,    in v  beta_2 V*
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from metasched.core.twice import closed, differentiable
from metasched.training.optimizers import each

_Tensors = Sequence[torch.Tensor]


class Numbers(NamedTuple):
    """b_1, b_2, a, and eps times the root of v's bias correction; see ``Adam``. A tensor is 0-d."""

    of_mean: float | torch.Tensor
    of_square: float | torch.Tensor
    size: float | torch.Tensor
    eps: float | torch.Tensor


def step(
    params: _Tensors, grads: _Tensors, means: _Tensors, squares: _Tensors, numbers: Numbers
) -> tuple[_Tensors, _Tensors, _Tensors]:
    """The next p, m and v of each tensor; [...] each, in the dtype and on the device of the first list."""
    given = (*params, *grads, *means, *squares)
    alike = len({(t.dtype, t.device) for t in given}) == 1 and all(t.is_contiguous() for t in given)
    fixed = not any(isinstance(number, torch.Tensor) for number in numbers)
    found = _Step.apply(numbers, *given) if given and closed() and alike and fixed else _step(numbers, *given)
    n = len(params)
    return found[:n], found[n : 2 * n], found[2 * n :]  # pyright: ignore[reportOptionalSubscript]


def _step(numbers: Numbers, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    n = len(given) // 4
    params, grads, means, squares = (list(given[i * n : (i + 1) * n]) for i in range(4))
    means = each.lerp(means, grads, numbers.of_mean)
    squares = each.lerp(squares, each.squares(grads), numbers.of_square)
    # The clamp of the roots changes no value that eps would not hide.
    moved = each.plus_ratios(params, numbers.size, means, each.roots(squares, numbers.eps))
    return *moved, *means, *squares


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numbers: Numbers, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found, n = _step(numbers, *given), len(given) // 4
        ctx.save_for_backward(*given, *found[n:])
        ctx.numbers = numbers
        return found

    @staticmethod
    def backward(ctx: Any, *seeds: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        saved, numbers = ctx.saved_tensors, ctx.numbers
        n = len(seeds) // 3
        if torch.is_grad_enabled():
            needs = ctx.needs_input_grad[1:]
            return None, *differentiable(lambda *given: _step(numbers, *given), saved[: 4 * n], needs, seeds)

        def flat(tensors: _Tensors) -> torch.Tensor:
            return _flatten_dense_tensors([t.contiguous() for t in tensors])

        g, m, v = flat(saved[n : 2 * n]), flat(saved[4 * n : 5 * n]), flat(saved[5 * n :])
        of_p, of_m, of_v = (flat(seeds[i * n : (i + 1) * n]) for i in range(3))
        tiny = torch.finfo(v.dtype).tiny
        root = v.clamp_min(tiny).sqrt_()
        denominator = root + numbers.eps
        step = (of_p / denominator).mul_(numbers.size)
        of_m = of_m + step
        of_v = of_v - step.mul_(m).div_(denominator).div_(root.mul_(2)).masked_fill_(v <= tiny, 0)
        of_g = (of_m * numbers.of_mean).add_(g.mul_(of_v), alpha=2 * numbers.of_square)
        parts = (of_g, of_m.mul_(1 - numbers.of_mean), of_v.mul_(1 - numbers.of_square))
        like = saved[:n]
        return None, *seeds[:n], *(t for part in parts for t in _unflatten_dense_tensors(part, like))
