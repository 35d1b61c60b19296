"""AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from metasched.training.optimizers import each
from metasched.training.optimizers.adam import Adam
from metasched.training.optimizers.base import Hyper, OptState


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay d: p <- (1 - lr d) p, then a step of Adam without weight decay.

    As torch.optim.AdamW without amsgrad (Loshchilov and Hutter, 2019, arXiv 1711.05101).
    """

    hyperparameters = Adam.hyperparameters
    elementwise = True

    def init(self, params: Mapping[str, torch.Tensor]) -> OptState:
        """The state of Adam."""
        return Adam().init(params)

    def update(
        self,
        params: Mapping[str, torch.Tensor],
        grads: Mapping[str, torch.Tensor | None],
        state: OptState,
        hyper: Hyper,
    ) -> tuple[dict[str, torch.Tensor], OptState]:
        """One step; see Optimizer.update."""
        shrink = -hyper["lr"] * hyper["weight_decay"]
        names = [name for name in params if grads.get(name) is not None]
        old = [params[name] for name in names]
        shrunk = {**params, **dict(zip(names, each.plus(old, shrink, old), strict=True))}
        return Adam().update(shrunk, grads, state, {**hyper, "weight_decay": 0.0})
