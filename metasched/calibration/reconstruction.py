"""The reconstruction of a unit's outputs as a task, so that every part that trains can train it.

    loss = sum over channels, mean over examples and places, of (y - t)^2

for the outputs y of the unit on inputs from the network whose earlier layers are quantized, and the outputs t of the
float network. Inner runs, hypergradients, estimators and searches take the problem as any other one.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_map

from metasched.calibration.batches import Call
from metasched.calibration.unit import Segment, Unit, joined
from metasched.core.randomness import generator
from metasched.methods.adaround import AdaRound
from metasched.methods.base import Method
from metasched.methods.oriented import Oriented
from metasched.network.quantized import QuantizedNetwork
from metasched.tasks.base import Model, Part, Task
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem


class Batch(NamedTuple):
    """Arguments of the unit for some examples, and the outputs that they are to give, [N, ...]."""

    call: Call
    target: torch.Tensor


class Reconstruction(Task):
    """Outputs of a unit.

    Attributes:
        segment: the float unit.
        data: all examples, N of them; they are the validation and the test part too.
        channels: C, over which the loss sums.
        batch_size: examples of a step.
    """

    name = "reconstruction"
    draws = False

    def __init__(self, segment: Segment, data: Batch, channels: int, batch_size: int) -> None:
        self.segment, self.data, self.channels, self.batch_size = segment, data, channels, batch_size

    def build(self) -> nn.Module:
        """A copy of the float unit."""
        return copy.deepcopy(self.segment)

    def batch(self, seed: int, step: int) -> Batch:
        """Examples that are drawn without replacement, anew at each step."""
        n = len(self.data.target)
        if self.batch_size >= n:
            return self.data
        chosen = torch.randperm(n, generator=generator(seed, "reconstruction", step))[: self.batch_size]
        chosen = chosen.to(self.data.target.device)

        def of_these(leaf: Any) -> Any:
            return leaf[chosen] if isinstance(leaf, torch.Tensor) and leaf.dim() and len(leaf) == n else leaf

        return Batch(tree_map(of_these, self.data.call), self.data.target[chosen])

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """See the module's docstring; 0-d."""
        args, kwargs = batch.call
        return self.channels * (model(*args, **kwargs) - batch.target).square().mean()

    def outer_batch(self) -> Batch:
        """All examples."""
        return self.data

    def score(self, model: Model, part: Part) -> float:
        """Minus the relative squared error on all examples."""
        args, kwargs = self.data.call
        wrong = (model(*args, **kwargs) - self.data.target).square().sum()
        return -float(wrong / self.data.target.square().sum())

    def calibrate(self, model: Model) -> None:
        """Nothing: there is no batch normalization."""


def adaround_of(method: Method) -> Method:
    """AdaRound of weights alone with the levels and the scale of another method, for weights that lie as its own do."""
    if isinstance(method, Oriented):
        return Oriented(adaround_of(method.base), method.groups)
    return AdaRound(replace(method.quantizer, activation_levels=None))


def reconstruction(unit: Unit, *, steps: int, lr: float, batch: int, seed: int = 0) -> InnerProblem:
    """The inner problem of a unit's rounding.

    >>> from metasched.calibration.walking import units
    >>> from metasched import Recipe
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> first, *_ = units(model, Recipe("ste", weights="int2", activations=None), [torch.randn(8, 4)])
    >>> problem = reconstruction(first, steps=10, lr=0.01, batch=4)
    >>> [control.name for control in problem.network.method.controls]
    ['rounding_beta', 'rounding_penalty']

    Args:
        unit: layer or block.
        steps: T.
        lr: learning rate of Adam, with the other parameters at torch's defaults.
        batch: examples of a step.
        seed: of their order.
    """
    methods = tuple(adaround_of(method) for method in unit.methods)
    network = QuantizedNetwork(unit.segment, methods[0], unit.layers, methods=methods, keeps=True)
    data = Batch(joined(unit.calls), torch.cat(unit.targets))
    task = Reconstruction(unit.segment, data, unit.channels, batch)
    rule, hyper = recipe(OptimizerConfig(name="adam", lr=lr))
    return InnerProblem(network, task, rule, hyper, steps, seed)
