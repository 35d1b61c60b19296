"""Rounding problems: a random layer is rounded so that its outputs stay near those of the float layer.

    y = W x,   loss = sum over C = 32 channels, mean over examples, of ((W' - W) x)^2

The weights W [C, d] are drawn anew for each seed, from a standard normal distribution: each inner run is a new problem.
The inputs x = A z / d, with standard normal z and A, are correlated, as those of a layer are; outputs have a variance
of about 1. This is what ``metasched.calibrate`` does with a layer, as a task to learn schedules of ``adaround``.

The network is that layer beside its float copy and puts out the difference of both; the copy gets no gradient, and so
stands still under an optimizer without weight decay. Its only layer is the last one: set ``quantize.last`` to true. The
score is 1 - mean ((W' - W) x)^2 / mean |x|^2, at most 1; |x|^2 is what (w x)^2 is on average over w.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from metasched.core.errors import MetaschedError
from metasched.core.randomness import generator
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import Split, SupervisedTask

CHANNELS = 32
_TRAIN, _VALIDATION, _TEST = 512, 256, 256


class Beside(nn.Module):
    """A layer without bias beside its float copy: inputs [N, d] -> difference of their outputs [N, C]."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, CHANNELS, bias=False)
        nn.init.normal_(self.layer.weight)
        self.target = nn.Parameter(self.layer.weight.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The difference of the outputs."""
        return self.layer(x) - F.linear(x, self.target.detach())


def squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over channels, mean over examples, of the squared difference of two [N, C]; 0-d."""
    return (outputs - targets).square().sum(1).mean()


def reproduced(outputs: torch.Tensor, targets: torch.Tensor, *, power: float) -> torch.Tensor:
    """1 - mean squared difference of two [N, C] / power; 0-d."""
    return 1 - (outputs - targets).square().mean() / power


def rounding_task(config: TaskConfig) -> SupervisedTask:
    """Layers of d = ``task.width`` inputs; A and the examples follow from ``task.data_seed``.

    >>> task = rounding_task(TaskConfig(name="rounding", width=10, batch=16))
    >>> [len(split.x) for split in (task.train, task.validation, task.test)]
    [512, 256, 256]

    Raises:
        MetaschedError: fewer than two inputs: there is nothing to trade.
    """
    if config.width < 2:
        raise MetaschedError("task.width", f"is {config.width}", "give a layer two inputs or more")
    draws = generator(config.data_seed, "rounding")
    mixing = torch.randn(config.width, config.width, generator=draws, dtype=torch.float32) / config.width
    sizes = (config.train or _TRAIN, config.validation or _VALIDATION, config.test or _TEST)
    splits = []
    for n in sizes:
        x = torch.randn(n, config.width, generator=draws, dtype=torch.float32) @ mixing
        splits.append(Split(x, torch.zeros(n, CHANNELS, dtype=torch.float32)))
    power = float(splits[0].x.square().sum(1).mean())
    metric = partial(reproduced, power=power)
    batch = min(config.batch, sizes[0])
    build = partial(Beside, config.width)
    train, validation, test = splits
    return SupervisedTask("rounding", train, validation, test, build, squared_error, metric, batch, worst_score=None)
