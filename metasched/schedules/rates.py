"""Hand-coded schedules of ``rates``: no paper gives one; they say what the optimizer's decay does not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from metasched.core.layer import Layer
from metasched.schedules.curves import Curve, HandCoded, constant
from metasched.schedules.widths import exponential

_RISING = (
    "this project, three numbers fitted to what the network learned on digits (nine convolutions, ternary, fixed "
    "scales, 30 steps of Adam with cosine decay; R2 0.87): a quarter of the optimizer's rate at first and three times "
    "it at the end, higher towards the input"
)
_NO_DECAY: Curve = partial(constant, value=0.0)


def late(progress: torch.Tensor, layers: Sequence[Layer], *, factor: float, since: float) -> torch.Tensor:
    """1 before ``since``, then geometrically to ``factor`` at progress 1.

    Args:
        progress: [T] in [0, 1].
        layers: L of them; all have the same values.
        factor: at the end, > 0.
        since: progress in [0, 1) where the change begins.

    Returns:
        [T, L] in the dtype of ``progress``.

    >>> late(torch.tensor([0.0, 0.5, 0.75, 1.0]), [None], factor=4.0, since=0.5).flatten().tolist()
    [1.0, 1.0, 2.0, 4.0]
    """
    return (factor ** ((progress - since).clamp_min(0) / (1 - since)))[:, None].repeat(1, len(layers))


def rates() -> list[HandCoded]:
    """The hand-coded schedules of the method ``rates``."""
    curves: dict[str, Curve] = {"lr_scale": partial(constant, value=1.0), "weight_decay": _NO_DECAY}
    late_curves: dict[str, Curve] = {"lr_scale": partial(late, factor=4.0, since=0.5), "weight_decay": _NO_DECAY}
    rising: dict[str, Curve] = {
        "lr_scale": partial(exponential, middle=0.9, depth=-0.5, time=1.3),
        "weight_decay": _NO_DECAY,
    }
    return [
        HandCoded("rates_rising", "rates", _RISING, rising, "linear"),
        HandCoded(
            "rates_constant", "rates", "no schedule: STE with the optimizer's own learning rate", curves, "linear"
        ),
        HandCoded(
            "rates_late",
            "rates",
            "this project, from hypergradients on digits (nine convolutions, ternary, learned scales, 60 steps): the "
            "weights' rate is held up in the last half of a cosine decay",
            late_curves,
            "linear",
        ),
    ]
