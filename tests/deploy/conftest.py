"""Random networks for the tests of deployment: kernels, strides, pooling, orders, and signs and zeros of gamma."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from metasched.deploy.agreement import Twin
from metasched.deploy.converted import twin_of
from metasched.deploy.integer import integer_of
from metasched.deploy.stages import IntegerNetwork
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.models.cutie import Thermometer
from metasched.network.convert import converted
from metasched.network.flat import Tensors
from metasched.network.quantize import quantize
from metasched.network.quantized import QuantizedNetwork


@dataclass(frozen=True, repr=False)
class Trained:
    """A quantized network as training would leave it, with random parameters and statistics."""

    network: QuantizedNetwork
    params: Tensors
    state: Tensors
    buffers: Tensors
    example: torch.Tensor

    def plain(self) -> nn.Module:
        return converted(self.network, self.params, self.state, self.buffers)

    def integer(self, step: Fraction = Fraction(1, 32)) -> IntegerNetwork:
        return integer_of(self.plain(), self.example, step)

    def twin(self, integer: IntegerNetwork) -> Twin:
        return twin_of(self.plain(), integer)


def as_trained(model: nn.Module, config: MethodConfig, example: torch.Tensor, seed: int, last: bool = True) -> Trained:
    """Random weights, statistics like those of the sums, and gammas of both signs, some of them zero."""
    network = quantize(model, build_method(config), example, last=last)
    params = {name: p.detach().clone() for name, p in network.module.named_parameters()}
    rows = {c.name: torch.zeros(len(network.layers), dtype=example.dtype) for c in network.method.controls}
    params, state = network.initialize(params, rows, seed)
    generator = torch.Generator().manual_seed(seed)
    buffers = network.buffers()
    for name, module in network.module.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            count = module.num_features

            def normal(count: int = count) -> torch.Tensor:
                return torch.randn(count, generator=generator, dtype=example.dtype)

            buffers[f"{name}.running_mean"] = 2 * normal()
            buffers[f"{name}.running_var"] = (4 * normal()).square() + 0.1
            if module.affine:
                kept = torch.rand(count, generator=generator) < 0.8
                params[f"{name}.weight"] = normal() * 2 * kept
                params[f"{name}.bias"] = normal()
    return Trained(network, params, state, buffers, example)


@st.composite
def networks(draw: st.DrawFn) -> Trained:
    """Convolutions, then linear layers, each with normalization, activation and pooling in some order."""
    seed = draw(st.integers(0, 2**31))
    channels, size = draw(st.integers(1, 3)), draw(st.integers(4, 9))
    shape, modules = (channels, size, size + draw(st.integers(0, 2))), list[nn.Module]()
    example = torch.zeros(1, *shape)
    if draw(st.booleans()):
        modules.append(Thermometer(draw(st.integers(1, 3)), draw(st.sampled_from([0.25, 0.7, 1.5]))))
        channels *= len(modules[0].thresholds)
    for _ in range(draw(st.integers(0, 3))):
        kernel = draw(st.integers(1, 3))
        groups = draw(st.sampled_from([1, 1, channels]))
        out = groups * draw(st.integers(1, 4))
        convolution = nn.Conv2d(
            channels,
            out,
            kernel,
            stride=draw(st.integers(1, 2)),
            padding=draw(st.integers(0, 1)) if kernel > 1 else 0,
            groups=groups,
            bias=draw(st.booleans()),
        )
        norm = draw(st.sampled_from([[nn.BatchNorm2d(out)], [nn.BatchNorm2d(out, affine=False)], []]))
        block: list[nn.Module] = [*norm, nn.ReLU()]
        _, height, width = _after([*modules, convolution], example)
        if min(height, width) < 1:
            break
        if min(height, width) >= 2 and draw(st.booleans()):
            pool = draw(
                st.sampled_from(
                    [
                        nn.MaxPool2d(2),
                        nn.MaxPool2d(2, 1),
                        nn.MaxPool2d(3, 2, 1),
                        nn.AvgPool2d(2),
                        nn.AdaptiveAvgPool2d(3),
                    ]
                )
            )
            block.insert(draw(st.integers(0, len(block))), pool)
        modules += [convolution, *block]
        channels, *_ = _after(modules, example)
        if min(_after(modules, example)[1:]) < 2:
            break
    modules.append(nn.Flatten())
    features = nn.Sequential(*modules)(example).shape[1]
    for _ in range(draw(st.integers(0, 2))):
        out = draw(st.integers(1, 12))
        modules += [nn.Linear(features, out, bias=False), nn.BatchNorm1d(out), nn.ReLU()]
        features = out
    modules.append(nn.Linear(features, draw(st.integers(2, 5))))
    config = MethodConfig(
        name=draw(st.sampled_from(["ste", "ana", "inq", "joint"])),
        levels=draw(
            st.sampled_from(["ternary", "ternary", "binary", "int2", "balanced3", "int4", "pow2_3", "midrise2"])
        ),
        activation_levels=draw(
            st.sampled_from(["ternary", "ternary", "binary", "uint2", "int3", "pow2_3", "midrise2"])
        ),
        scale=draw(st.sampled_from(["unit", "max", "least_squares", "pow2"])),
        granularity=draw(st.sampled_from(["tensor", "channel"])),
        activation_scale=draw(st.sampled_from([1.0, 0.5])),
    )
    single = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in modules) == 1
    last = single or draw(st.booleans())  # a network of one layer must quantize it
    return as_trained(nn.Sequential(*modules).eval(), config, example, seed, last)


def _after(modules: list[nn.Module], example: torch.Tensor) -> tuple[int, int, int]:
    try:
        with torch.no_grad():
            _, *shape = nn.Sequential(*modules).eval()(example).shape
    except RuntimeError:  # a window larger than the image
        return 0, 0, 0
    return shape[0], shape[1], shape[2]


@pytest.fixture(scope="session")
def random_networks() -> st.SearchStrategy[Trained]:
    """To draw from within a test: a conftest cannot be imported."""
    return networks()


@pytest.fixture(scope="session", name="as_trained")
def _as_trained() -> Callable[..., Trained]:
    return as_trained
