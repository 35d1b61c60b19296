"""An operation on each tensor of a list: in one call for all where no derivative is asked for, which has the same bits.

torch's calls for lists take plain numbers only, torch.func maps none of them, and their derivatives fail for some lists
(torch 2.15). torch.optim uses them too, though their names are private.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import torch
from torch.autograd import forward_ad

from metasched.core.recording import recorded

Tensors = list[torch.Tensor]
Number = float | torch.Tensor  # 0-d


def _at_once() -> bool:
    derived = torch.is_grad_enabled() or forward_ad._current_level >= 0
    return not derived and not torch._C._are_functorch_transforms_active()


def plus(ys: Tensors, a: Number, xs: Tensors) -> Tensors:
    """Each y + a x, differentiable in a; only a plain 0.0 drops the term."""
    if isinstance(a, torch.Tensor):
        return [torch.addcmul(y, a, x) for y, x in zip(ys, xs, strict=True)]
    if a == 0 or not ys:
        return ys
    if _at_once():
        return list(torch._foreach_add(ys, xs, alpha=a))
    return [torch.add(y, x, alpha=a) for y, x in zip(ys, xs, strict=True)]


def lerp(xs: Tensors, ys: Tensors, a: Number) -> Tensors:
    """Each x + a (y - x)."""
    if xs and not isinstance(a, torch.Tensor) and _at_once():
        return list(torch._foreach_lerp(xs, ys, a))
    return [torch.lerp(x, y, a) for x, y in zip(xs, ys, strict=True)]


def squares(xs: Tensors) -> Tensors:
    """Each x^2."""
    return list(torch._foreach_mul(xs, xs)) if xs and _at_once() else [x * x for x in xs]


def roots(xs: Tensors, eps: Number) -> Tensors:
    """Each sqrt(x) + eps, with a derivative of 0 where x is 0, where that of sqrt is infinite.

    x is raised to the smallest normal number first.
    """
    if xs and not isinstance(eps, torch.Tensor) and _at_once():
        raised = torch._foreach_clamp_min(xs, [torch.finfo(x.dtype).tiny for x in xs])
        return list(torch._foreach_add(torch._foreach_sqrt(raised), eps))
    return [x.clamp_min(torch.finfo(x.dtype).tiny).sqrt() + eps for x in xs]


def plus_ratios(ps: Tensors, a: Number, ms: Tensors, ds: Tensors) -> Tensors:
    """Each p + a m / d, differentiable in a."""
    if isinstance(a, torch.Tensor) and recorded():  # the bits are those for a number
        ms, a = list(torch.ops.aten._foreach_mul.Tensor(ms, a)) if ms and _at_once() else [m * a for m in ms], 1.0
    if isinstance(a, torch.Tensor):
        return [torch.addcmul(p, a, m / d) for p, m, d in zip(ps, ms, ds, strict=True)]
    if ps and _at_once():
        return list(torch._foreach_addcdiv(ps, ms, ds, value=a))
    return [torch.addcdiv(p, m, d, value=a) for p, m, d in zip(ps, ms, ds, strict=True)]
