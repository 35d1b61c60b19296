"""Hand-coded schedules of ``pruning``: the share s of the target sparsity, the same in all layers.

With progress u and c = clip(u / 0.6) to [0, 1]:

    pruning_cubic      1 - (1 - c)^3                      (Zhu and Gupta)
    pruning_linear     c
    pruning_convex     c^3
    pruning_at_once    1 throughout: pruned from the first step on, no schedule
    pruning_at_end     0, and 1 at the last step: trained dense, then pruned

Zhu and Gupta leave start and length of the ramp to the user. Here it starts with the run and takes 0.6 of it, so that
what is left recovers while the learning rate is not yet small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from metasched.core.layer import Layer
from metasched.schedules.curves import HandCoded, constant, steps

ZHU_GUPTA = (
    "Zhu, Gupta: To prune, or not to prune: exploring the efficacy of pruning for model compression. 2017, arXiv "
    "1710.01878, equation 1"
)
SHARE = 0.6  # of the run that the ramp takes


def cubic(c: torch.Tensor) -> torch.Tensor:
    """1 - (1 - c)^3 at c [...]: most is pruned early."""
    return 1 - (1 - c) ** 3


def linear(c: torch.Tensor) -> torch.Tensor:
    """The same at all times, for c [...]."""
    return c


def convex(c: torch.Tensor) -> torch.Tensor:
    """c^3 at c [...]: most is pruned late."""
    return c**3


def ramp(
    progress: torch.Tensor, layers: Sequence[Layer], *, form: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """A form of clip(u / 0.6, 0, 1) at progress u [T], the same for L layers: [T, L]."""
    return form((progress / SHARE).clamp(0, 1))[:, None].expand(len(progress), len(layers)).clone()


def pruning() -> list[HandCoded]:
    """The schedule of Zhu and Gupta, two other ramps, and pruning in one step at the start and at the end."""
    forms = {
        "cubic": (cubic, f"{ZHU_GUPTA}, over the first 0.6 of the run"),
        "linear": (linear, "a linear ramp over the first 0.6 of the run, not from a paper"),
        "convex": (convex, "slow at first, over the first 0.6 of the run, not from a paper"),
    }
    ramps = [
        HandCoded(f"pruning_{name}", "pruning", citation, {"sparsity": partial(ramp, form=form)}, "linear")
        for name, (form, citation) in forms.items()
    ]
    at_once = {"sparsity": partial(constant, value=1.0)}
    at_end = {"sparsity": partial(steps, times=(1.0,), values=(0.0, 1.0))}
    return [
        *ramps,
        HandCoded("pruning_at_once", "pruning", "pruned from the first step on: no schedule", at_once, "linear"),
        HandCoded(
            "pruning_at_end", "pruning", "trained dense, and pruned at the last step", at_end, "previous", (1.0,)
        ),
    ]
