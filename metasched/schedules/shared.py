"""One learnable schedule for many tasks: its numbers are a linear function of the features of a task.

    numbers(task) = w_0 + sum_f w_f phi_f(task) / sqrt(F)

The numbers are the parameters of a schedule network or family (learnable.py), phi the bounded features
(core/features.py). w_0 is what all tasks share; at the beginning it has the start's numbers, and all else is 0. An
estimator perturbs or differentiates the few numbers of one task, and the chain rule carries the gradient back:

    d/d w_0 = g,    d/d w_f = g phi_f / sqrt(F)

so that more features cost no more noise. By Cauchy and Schwarz the features together weigh as much as w_0 at most.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from metasched.core.features import FEATURES, bounded
from metasched.core.layer import Layer
from metasched.schedules.feedback import FeedbackSchedule
from metasched.schedules.learnable import LearnableSchedule


class SharedSchedule(nn.Module):
    """The weights of the schedules of many tasks; see the module's docstring.

    Args:
        form: the learnable schedule whose numbers they give; what it starts at is what all tasks start at.

    Attributes:
        weights: [1 + F, D], w_0 first; D numbers in the order of ``form.named_parameters()``.
    """

    def __init__(self, form: LearnableSchedule) -> None:
        super().__init__()
        self._form = [form]  # in a list: its parameters are not learned themselves
        numbers = torch.cat([p.detach().flatten() for p in form.parameters()])
        self.weights = nn.Parameter(torch.cat([numbers[None], numbers.new_zeros(len(FEATURES), len(numbers))]))

    @property
    def form(self) -> LearnableSchedule:
        """The learnable schedule, at the numbers that it had."""
        return self._form[0]

    def forward(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values {control: [T, L]} at progress [T] for a task of which nothing is known, which counts as a mean one."""
        return self.at({})(progress, layers)

    def numbers(self, features: Mapping[str, float]) -> torch.Tensor:
        """The numbers [D] for a task, differentiable in the weights."""
        return self._inputs(features) @ self.weights

    def at(self, features: Mapping[str, float]) -> LearnableSchedule:
        """The schedule of a task: a copy of the form with its numbers as parameters."""
        own = copy.deepcopy(self.form)
        with torch.no_grad():
            numbers, done = self.numbers(features), 0
            for p in own.parameters():
                p.copy_(numbers[done : done + p.numel()].view_as(p))
                done += p.numel()
        return own

    def pulled_back(self, features: Mapping[str, float], gradient: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The gradient in the weights, [[1 + F, D]], of one in the numbers of a task.

        Args:
            features: of the task.
            gradient: one tensor [...] for each parameter of ``at(features)``.
        """
        flat = torch.cat([g.detach().flatten() for g in gradient]).to(self.weights)
        return [torch.outer(self._inputs(features), flat)]

    def _inputs(self, features: Mapping[str, float]) -> torch.Tensor:
        return self.weights.new_tensor([1.0, *(phi / math.sqrt(len(FEATURES)) for phi in bounded(features))])


LearnedSchedule = LearnableSchedule | FeedbackSchedule | SharedSchedule  # what an outer loop moves
