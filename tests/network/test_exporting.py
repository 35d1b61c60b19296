"""The deployed network in what other software records: torch.export, torch.jit.trace, torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from metasched import MethodConfig, QuantizedModule, build_method, quantize
from metasched.exchange.integrations.driven import DrivenModule
from metasched.methods.spec import METHODS
from metasched.quantizers import constants

X = torch.linspace(-2, 2, 128).reshape(2, 1, 8, 8)
IGNORED = "DeprecationWarning", "FutureWarning", "torch.jit.TracerWarning"  # of the recorders themselves
pytestmark = [pytest.mark.filterwarnings(f"ignore::{name}") for name in IGNORED]


@pytest.fixture(autouse=True)
def _fresh_constants() -> Iterator[None]:
    """Constants that were made before a test would hide what its tracing leaves in the cache."""
    constants._constants.cache_clear()
    yield
    constants._constants.cache_clear()


def driven(**method: Any) -> DrivenModule:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    network = quantize(model, build_method(MethodConfig(**method)), X)
    low = {c.name: min(max(0.0, c.low), c.high) for c in network.method.controls}
    values = {layer.name: low for layer in network.layers}
    module = QuantizedModule(network, values, example=X)
    module(X, values, 0)
    module.settle()
    return DrivenModule(module, values)


@pytest.mark.parametrize("name", [n for n in sorted(METHODS) if not build_method(MethodConfig(name=n)).tables])
def test_every_deployed_method_is_exported_with_its_numbers(name: str) -> None:
    network = driven(name=name).eval()
    exported = torch.export.export(network, (X,)).module()
    assert torch.equal(exported(X), network(X))


@pytest.mark.parametrize(
    "method", [{"levels": "int4", "activation_levels": "uint8"}, {"scale": "learned", "activation_scale": "learned"}]
)
def test_many_levels_and_learned_scales_are_exported(method: dict[str, Any]) -> None:
    network = driven(name="ste", **method).eval()
    exported = torch.export.export(network, (X,)).module()
    torch.testing.assert_close(exported(X / 2), network(X / 2), rtol=0, atol=0)


def test_the_deployed_network_is_traced_with_its_numbers() -> None:
    network = driven(name="inq").eval()
    traced = torch.jit.trace(network, (X,))
    assert torch.equal(traced(X / 3), network(X / 3))  # type: ignore[operator]


def test_training_goes_on_after_an_export() -> None:
    network, other = driven(name="ste"), driven(name="ste")
    torch.export.export(network.eval(), (X,))
    found = []
    for one in (network, other):
        one.train()
        one(X).square().sum().backward()
        found.append([p.grad for p in one.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None)
