"""The contract of an inner optimizer, and how it steps many stacked runs at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

OptState = dict[str, torch.Tensor]  # "<quantity>.<parameter>" -> tensor of the parameter's shape; Adam: "step", 0-d
Hyper = Mapping[str, float | torch.Tensor]  # of one step


class Optimizer(Protocol):
    """A pure rule for the parameters' next values, differentiable in everything that it reads.

    Parameters, gradients and state are flat dicts, and nothing is changed in place. Each hyper-parameter is a number
    or a 0-d tensor of this step, and its derivative is right also where its value is exactly 0. So a tensor is never
    compared with 0 nor turned into a number, as torch.optim and ``higher`` do; only a plain 0.0, which has no
    derivative, drops its term.
    """

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Names that ``hyper`` must hold; 0-d tensors have the parameters' dtype and device."""
        ...

    @property
    def elementwise(self) -> bool:
        """Whether each element of a new parameter depends on that element alone, so that runs may be stacked."""
        ...

    def init(self, params: Mapping[str, torch.Tensor]) -> OptState:
        """State before the first step, from the parameters (any shape [...], floating point).

        What belongs to a parameter has the key "<quantity>.<parameter>", with a quantity without a dot; all else is
        shared by the parameters, and is 0-d.
        """
        ...

    def update(
        self,
        params: Mapping[str, torch.Tensor],
        grads: Mapping[str, torch.Tensor | None],
        state: OptState,
        hyper: Hyper,
    ) -> tuple[dict[str, torch.Tensor], OptState]:
        """Parameters and state after a step: new tensors [...] of the shapes, dtypes and devices of the old ones.

        A parameter whose gradient is None or missing stays as it is, with its part of the state.
        """
        ...


def update_stacked(
    optimizer: Optimizer,
    params: Mapping[str, torch.Tensor],
    grads: Mapping[str, torch.Tensor],
    state: OptState,
    hyper: Hyper,
) -> tuple[dict[str, torch.Tensor], OptState]:
    """``optimizer.update`` of N runs at once, each as if it were alone.

    Args:
        optimizer: one that is not elementwise is mapped by torch.vmap, so that its norms are those of each run.
        params, grads: {name: [N, ...]}.
        state: {key: [N, ...]}, and 0-d what the runs share, such as the number of steps.
        hyper: shared by the runs.
    """
    if optimizer.elementwise:
        return optimizer.update(params, grads, state, hyper)
    shared = {key: None for key, t in state.items() if not t.dim()}
    places = {key: None if key in shared else 0 for key in state}

    def one(params: dict[str, torch.Tensor], grads: dict[str, torch.Tensor], state: OptState) -> tuple:
        return optimizer.update(params, grads, state, hyper)

    mapped = torch.vmap(one, in_dims=(0, 0, places), out_dims=(0, places))  # pyright: ignore[reportArgumentType]
    return mapped(dict(params), dict(grads), state)
