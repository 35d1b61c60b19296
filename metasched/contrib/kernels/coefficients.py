"""What an optimizer makes of a gradient, as ten numbers a step: SGD, Adam and AdamW in one formula.

    g <- g + decay w,    m <- keep1 m + gain1 g,    v <- keep2 v + gain2 g^2
    dw = size m / (sqrt(v) + eps) + shrink w        (without v: dw = size m + shrink w; without m: m = g)

The formulas are those of training/optimizers, with the bias corrections of Adam taken into ``size`` and ``eps``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Coefficients(NamedTuple):
    """The numbers of the module's formula.

    Attributes:
        moments: how many the optimizer has: 0 (SGD without momentum), 1 (m) or 2 (m and v).
    """

    moments: int
    size: float
    decay: float = 0.0
    shrink: float = 0.0
    keep1: float = 0.0
    gain1: float = 1.0
    keep2: float = 0.0
    gain2: float = 0.0
    eps: float = 0.0


def sgd(hyper: Mapping[str, float], t: int) -> Coefficients:
    """SGD with ``lr``, ``momentum`` and ``weight_decay``; without momentum it has no moments.

    >>> sgd(dict(lr=0.5, momentum=0.0, weight_decay=0.0), 1)[:2]
    (0, -0.5)
    """
    momentum = hyper["momentum"]
    return Coefficients(int(momentum != 0), -hyper["lr"], hyper["weight_decay"], keep1=momentum)


def adam(hyper: Mapping[str, float], t: int) -> Coefficients:
    """Adam at the t-th step, t = 1, 2, ...: ``lr``, ``beta1``, ``beta2``, ``eps`` and ``weight_decay`` (L2)."""
    beta1, beta2 = hyper["beta1"], hyper["beta2"]
    root = math.sqrt(1 - beta2**t)
    return Coefficients(
        2,
        size=-hyper["lr"] * root / (1 - beta1**t),
        decay=hyper["weight_decay"],
        keep1=beta1,
        gain1=1 - beta1,
        keep2=beta2,
        gain2=1 - beta2,
        eps=hyper["eps"] * root,
    )


def adamw(hyper: Mapping[str, float], t: int) -> Coefficients:
    """Adam with decoupled weight decay. The gradient is taken before it, so that dw is the sum of both steps."""
    return adam(hyper, t)._replace(decay=0.0, shrink=-hyper["lr"] * hyper["weight_decay"])


COEFFICIENTS: dict[str, Callable[[Mapping[str, float], int], Coefficients]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
}
