"""What a network computes besides its layers is traced, or refused by name."""

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
from metasched.deploy.integer import integer_of
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.convert import converted
from metasched.network.quantize import quantize

IMAGE = torch.zeros(1, 1, 8, 8)


def refused(model: nn.Module) -> str:
    network = quantize(model, build_method(MethodConfig(name="ste")), IMAGE, last=True)
    params, state = network.initialize(dict(network.module.named_parameters()), {}, 0)
    plain = converted(network, params, state, network.buffers())
    with pytest.raises(MetaschedError) as error:
        integer_of(plain, IMAGE, Fraction(1))
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
        (_with(lambda m: m.get_submodule("0").register_forward_hook(lambda *a: 2 * a[2])), "model.0: has hooks"),
        (_with(lambda m: m.register_forward_pre_hook(lambda _, a: (-a[0],))), "model: has hooks"),
        (_with(_own_forward), "model.2: has a forward of its own instance"),
    ],
)
def test_what_a_module_does_besides_its_forward_is_refused(model: nn.Module, says: str) -> None:
    model(IMAGE)
    assert refused(model).startswith(says)


class _Forward(nn.Module):
    """Convolutions whose outputs a function puts together."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()) for _ in "ab")
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
        self.rule = forward
        self(IMAGE)

    def forward(self, x: torch.Tensor) -> Any:
        return self.rule(self, x)


def _unused(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.b(x)
    return m.head(m.a(x))


def _in_place(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.a(x)
    z = y
    z += m.b(x)
    return m.head(y + z)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (lambda m, x: m.head(m.a(x) * m.b(x)), "model.mul: computes mul, which has no integer form"),
        (lambda m, x: m.head(m.a(x) + 1), "model.add: computes add, which has no integer form"),
        (lambda m, x: m.head(torch.add(m.a(x), m.b(x), alpha=2)), "model.add: computes add, which has no"),
        (lambda m, x: m.head(torch.cat([m.a(x), m.b(x)])), "model.cat: computes cat, which has no integer form"),
        (lambda m, x: m.head(m.a(x)[:, :, 1:]), "model.getitem: computes getitem, which has no integer form"),
        (lambda m, x: m.head(nn.functional.pad(m.a(x), (1, 1))), "model.pad: computes pad, which has no integer"),
        (lambda m, x: m.head(m.a(x) if x.sum() > 0 else m.b(x)), "model: cannot be traced (TraceError"),
        (lambda m, x: (m.head(m.a(x)), m.head(m.b(x))), "model.head.1: is in the network twice"),
        (lambda m, x: (m.head(m.a(x)), x), "model: does not end with one tensor"),
        (_unused, "model.b.1: computes b.1, which is not used"),
        (_in_place, "model.iadd: changes a tensor in place that may be used again (iadd)"),
        (lambda m, x: m.head(m.a(x) + m.a[0](x)), "model.a.0: is in the network twice"),
        (lambda m, x: m.head(m.a(x) + x), "model.add: adds tensors of the shapes [4, 8, 8] and [1, 8, 8]"),
    ],
)
def test_what_is_no_operation_on_integers_is_refused(rule: Callable[..., Any], says: str) -> None:
    assert refused(_Forward(rule)).startswith(says)


def test_a_norm_in_two_places_is_refused() -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 4, 3), norm, nn.ReLU(), nn.Flatten()),
        nn.Linear(144, 3),
    )
    assert refused(model).startswith("model.1: is in the network twice")


def test_a_pool_in_two_places_runs_in_both(as_trained: Any) -> None:
    pool = nn.MaxPool2d(2)
    model = _Named(nn.Conv2d(1, 4, 3, padding=1), pool, nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), pool, nn.ReLU())
    _agrees(as_trained(nn.Sequential(model, nn.Flatten(), nn.Linear(16, 3)), MethodConfig(name="ste"), IMAGE, 0))


def test_a_sequential_that_adds_its_input(as_trained: Any) -> None:
    model = _body(_Skip(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()))
    model(IMAGE)
    _agrees(as_trained(model, MethodConfig(name="ste"), IMAGE, 0))


def _agrees(trained: Any) -> None:
    integer = trained.integer()
    codes = torch.arange(-32, 32).reshape(1, 1, 8, 8).numpy()
    outputs, _ = trained.twin(integer)(torch.from_numpy(codes))
    logits = simulator.run(integer, codes) * float(integer.stages[-1].step)
    assert np.allclose(logits, outputs, atol=1e-6)
