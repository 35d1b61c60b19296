"""Random directions in the parameters of a schedule, each parameter on a scale of its own.

    theta -> theta + size * delta,   delta = s e,   e ~ N(0, I)

The scale s of a parameter is what moves the schedule by about one log-correction; a schedule that knows it has a method
``scales()``; otherwise it is 1.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from metasched.core.randomness import generator
from metasched.network.flat import Tensors
from metasched.schedules.base import progress_of_steps
from metasched.training.state import InnerProblem


def scales(schedule: nn.Module) -> Tensors:
    """{parameter: its scale, 0-d}."""
    own = getattr(schedule, "scales", dict[str, float])()
    return {name: p.new_tensor(own.get(name, 1.0)) for name, p in schedule.named_parameters()}


def direction(schedule: nn.Module, seed: int, index: int = 0) -> Tensors:
    """delta: {parameter: a random change of it}, a function of (seed, index)."""
    draws = generator(seed, "direction", index)
    s = scales(schedule)
    return {
        name: s[name] * torch.randn(p.shape, generator=draws, dtype=p.dtype).to(p.device)
        for name, p in schedule.named_parameters()
    }


def controls_at(schedule: nn.Module, problem: InnerProblem, delta: Tensors, size: float) -> Tensors:
    """The values {control: [T, L]} of the schedule at theta + size * delta, without a graph."""
    with torch.no_grad():
        moved = {name: p + size * delta[name] for name, p in schedule.named_parameters()}
        return functional_call(schedule, moved, (progress_of_steps(problem.steps), problem.network.layers))


def score_function(schedule: nn.Module, delta: Tensors) -> list[torch.Tensor]:
    """s^-2 delta = e / s, in the order of the parameters, each [...] of its parameter's shape.

    Times a slope along delta it is an estimate of the gradient.
    """
    s = scales(schedule)
    return [delta[name] / s[name] ** 2 for name, _ in schedule.named_parameters()]
