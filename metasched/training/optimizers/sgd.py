"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from metasched.training.optimizers import each
from metasched.training.optimizers.base import Hyper, OptState


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum m and weight decay d.

        g <- g + d p,    v <- m v + g,    p <- p - lr v,    v = 0 at first

    With Nesterov's momentum p <- p - lr (g + m v), with the new v. As torch.optim.SGD, without dampening. Differs where
    m is 0 at some steps only: v is then the gradient of the step before, where torch.optim keeps its older buffer.

    >>> p = {"w": torch.tensor([1.0])}
    >>> p, _ = SGD().update(p, {"w": torch.tensor([2.0])}, SGD().init(p), dict(lr=0.25, momentum=0.9, weight_decay=0.0))
    >>> p["w"].tolist()
    [0.5]
    """

    nesterov: bool = False
    hyperparameters = ("lr", "momentum", "weight_decay")
    elementwise = True

    def init(self, params: Mapping[str, torch.Tensor]) -> OptState:
        """Momentum buffers of zeros: the first step makes them the gradient."""
        return {f"momentum_buffer.{name}": torch.zeros_like(p).detach() for name, p in params.items()}

    def update(
        self,
        params: Mapping[str, torch.Tensor],
        grads: Mapping[str, torch.Tensor | None],
        state: OptState,
        hyper: Hyper,
    ) -> tuple[dict[str, torch.Tensor], OptState]:
        """One step; see Optimizer.update."""
        momentum, weight_decay, size = hyper["momentum"], hyper["weight_decay"], -hyper["lr"]
        new_params, new_state = dict(params), dict(state)
        names = [name for name in params if grads.get(name) is not None]
        old, found = [params[name] for name in names], [g for name in names if (g := grads[name]) is not None]
        found = each.plus(found, weight_decay, old)
        buffers = each.plus(found, momentum, [state[f"momentum_buffer.{name}"] for name in names])
        direction = each.plus(found, momentum, buffers) if self.nesterov else buffers
        for name, p, v in zip(names, each.plus(old, size, direction), buffers, strict=True):
            new_params[name], new_state[f"momentum_buffer.{name}"] = p, v
        return new_params, new_state
