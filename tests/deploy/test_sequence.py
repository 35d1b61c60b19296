"""What is more than a sequence of its children is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.deploy import simulator
from metasched.deploy.agreement import float_twin
from metasched.deploy.integer import integer_network
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.quantize import quantize

IMAGE = torch.zeros(1, 1, 8, 8)


def refused(model: nn.Module) -> str:
    network = quantize(model, build_method(MethodConfig(name="ste")), IMAGE, last=True)
    params, state = network.initialize(dict(network.module.named_parameters()), {}, 0)
    with pytest.raises(MetaschedError) as error:
        integer_network(network, params, state, network.buffers(), IMAGE, Fraction(1))
    return str(error.value)


class _Skip(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + super().forward(input)


class _Named(nn.Sequential):
    """Another class with the forward of Sequential."""


def _body(*inner: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *inner, nn.Flatten(), nn.LazyLinear(3))


def _with(change: Callable[[nn.Module], object]) -> nn.Module:
    model = _body(nn.MaxPool2d(2))
    model(IMAGE)
    change(model)
    return model


def _own_forward(model: nn.Module) -> None:
    pool = model.get_submodule("2")
    pool.forward = lambda x: 2 * nn.functional.max_pool2d(x, 2)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (_body(_Skip(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())), "model.2: is a _Skip, whose forward is not that of"),
        (_with(lambda m: m.get_submodule("0").register_forward_hook(lambda *a: 2 * a[2])), "model.0: has hooks"),
        (_with(lambda m: m.register_forward_pre_hook(lambda _, a: (-a[0],))), "model: has hooks"),
        (_with(_own_forward), "model.2: has a forward of its own instance"),
    ],
)
def test_what_is_more_than_its_children_in_order_is_refused(model: nn.Module, says: str) -> None:
    model(IMAGE)
    assert refused(model).startswith(says)


def test_a_norm_in_two_places_is_refused() -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 4, 3), norm, nn.ReLU(), nn.Flatten()),
        nn.Linear(144, 3),
    )
    assert refused(model).startswith("model.4: is in the network twice")


def test_a_pool_in_two_places_runs_in_both(as_trained: Any) -> None:
    pool = nn.MaxPool2d(2)
    model = _Named(nn.Conv2d(1, 4, 3, padding=1), pool, nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), pool, nn.ReLU())
    trained = as_trained(nn.Sequential(model, nn.Flatten(), nn.Linear(16, 3)), MethodConfig(name="ste"), IMAGE, 0)
    integer = trained.integer()
    codes = torch.arange(-32, 32).reshape(1, 1, 8, 8).numpy()
    outputs, _ = float_twin(trained.network, integer, trained.params, trained.buffers)(torch.from_numpy(codes))
    logits = simulator.run(integer, codes) * float(integer.stages[-1].step)
    assert np.allclose(logits, outputs, atol=1e-6)
