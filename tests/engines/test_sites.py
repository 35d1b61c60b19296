"""Hypergradients through activations that are functions or shared modules, and through turned weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched.commands.check import random_controls
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.stacked import control_gradients_mapped
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.quantize import quantize
from metasched.tasks.classification import accuracy
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem

STEPS = 3


class Net(nn.Module):
    """Three layers with ReLUs: modules of their own, one module, or functions; or a convolution turned around."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        if how == "turned":
            turned = nn.ConvTranspose1d(8, 8, 1)
            with torch.no_grad():
                turned.weight.copy_(self.b.weight.T[..., None])
                turned.bias.copy_(self.b.bias)  # type: ignore[union-attr]
            self.b = nn.Sequential(nn.Unflatten(1, (8, 1)), turned, nn.Flatten())  # type: ignore[assignment]
        self.act = nn.ReLU()
        self.other = self.act if how == "shared" else nn.ReLU()
        self.functions = how == "functions"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = (F.relu, torch.relu) if self.functions else (self.act, self.other)
        return self.head(two(self.b(one(self.a(x)))))


def problem(how: str, method: MethodConfig) -> InnerProblem:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return Net(how)

    draws = torch.Generator().manual_seed(5)
    x, y = torch.randn(24, 6, generator=draws), torch.randint(3, (24,), generator=draws)
    part = Split(x[16:], y[16:])
    task = SupervisedTask("random", Split(x[:16], y[:16]), part, part, build, F.cross_entropy, accuracy, batch_size=8)
    rule, hyper = recipe(OptimizerConfig(name="adam", lr=0.02, eps=1e-3))
    return InnerProblem(quantize(build(), build_method(method).relaxed(0.3), x[:2]), task, rule, hyper, STEPS, seed=0)


def slopes(made: InnerProblem, mapped: bool) -> dict[str, torch.Tensor]:
    controls = random_controls(made.network.method.controls, STEPS, len(made.network.layers), 0, 1)
    if mapped:
        (found,) = control_gradients_mapped(made, [controls], [0], OuterLoss(), None)
        return found.wrt
    return control_gradient(find_unroll("sweep"), made, controls, OuterLoss()).wrt


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("how", ["functions", "shared", "turned"])
def test_hypergradients_are_those_of_modules_of_their_own(how: str, mapped: bool) -> None:
    method = MethodConfig(name="joint", scale="max", granularity="channel")
    wanted, found = slopes(problem("modules", method), False), slopes(problem(how, method), mapped)
    assert wanted["weight_noise"].any() and wanted["freeze_fraction"].any()
    for name, slope in wanted.items():
        torch.testing.assert_close(found[name], slope, rtol=1e-9, atol=1e-13)
