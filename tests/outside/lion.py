"""An optimizer from outside the package, as somebody's own file: Lion with a sign that has a derivative.

p <- p - lr tanh(sharpness m),    m <- beta3 m + (1 - beta3) g
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from metasched.training.optimizers import OptimizerSpec, Parameter, register_optimizer
from metasched.training.optimizers.base import Hyper, OptState


class SmoothLion:
    """The rule; see Optimizer."""

    hyperparameters = ("lr", "beta3", "sharpness")
    elementwise = True

    def init(self, params: Mapping[str, torch.Tensor]) -> OptState:
        return {f"m.{name}": torch.zeros_like(p) for name, p in params.items()}

    def update(
        self,
        params: Mapping[str, torch.Tensor],
        grads: Mapping[str, torch.Tensor | None],
        state: OptState,
        hyper: Hyper,
    ) -> tuple[dict[str, torch.Tensor], OptState]:
        new, moved = dict(params), dict(state)
        for name, p in params.items():
            if (g := grads.get(name)) is not None:
                m = hyper["beta3"] * state[f"m.{name}"] + (1 - hyper["beta3"]) * g
                new[name], moved[f"m.{name}"] = p - hyper["lr"] * torch.tanh(hyper["sharpness"] * m), m
        return new, moved


PARAMETERS = {"beta3": Parameter(0.9, 0.0, 1.0), "sharpness": Parameter(10.0, low=0.0)}
SPEC = register_optimizer(OptimizerSpec("lion", "Lion with a smooth sign", SmoothLion, parameters=PARAMETERS))
