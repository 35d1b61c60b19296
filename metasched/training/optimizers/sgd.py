"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from metasched.training.optimizers.base import Hyper, OptState, plus


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
        for name, p in params.items():
            g = grads.get(name)
            if g is None:
                continue
            key = f"momentum_buffer.{name}"
            g = plus(g, weight_decay, p)
            v = plus(g, momentum, state[key])
            direction = plus(g, momentum, v) if self.nesterov else v
            new_params[name], new_state[key] = plus(p, size, direction), v
        return new_params, new_state
