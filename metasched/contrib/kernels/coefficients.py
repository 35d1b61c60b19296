"""The updates of SGD, Adam and AdamW as one formula, whose coefficients are computed for each step.

    g <- g + decay w,    m <- keep1 m + gain1 g,    v <- keep2 v + gain2 g^2
    dw = size m / (sqrt(v) + eps) + shrink w        (without v: dw = size m + shrink w; without m: m = g)

The formulas are those of training/optimizers, with the bias corrections of Adam included in ``size`` and ``eps``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Coefficients(NamedTuple):
    """The coefficients of the formula above.

    Attributes:
        moments: number of moments of the optimizer: 0 (SGD without momentum), 1 (m) or 2 (m and v).
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
    """SGD with ``lr``, ``momentum`` and ``weight_decay``; no moment if the momentum is 0.

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
    """Adam with decoupled weight decay: dw is the sum of Adam's update and the decay, both computed at w."""
    return adam(hyper, t)._replace(decay=0.0, shrink=-hyper["lr"] * hyper["weight_decay"])


COEFFICIENTS: dict[str, Callable[[Mapping[str, float], int], Coefficients]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
}
