"""The float network: nothing is quantized, drawn or replaced, so that it is the module itself."""

from __future__ import annotations

import torch
from torch import nn

from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.module import QuantizedModule
from metasched.network.quantize import quantize


def model() -> nn.Module:
    torch.manual_seed(1)
    layers = (
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )
    return nn.Sequential(*layers)


def test_it_trains_and_deploys_as_the_module_itself() -> None:
    plain, x = model(), torch.randn(4, 1, 6, 6)
    network = quantize(plain, build_method(MethodConfig(name="float")), x)
    assert {layer.quantizes for layer in network.layers} == {"weight"}
    module = QuantizedModule(network, {layer.name: {} for layer in network.layers})
    ours, theirs = torch.optim.SGD(module.parameters(), lr=0.1), torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(3):
        found, expected = module(x, {layer.name: {} for layer in network.layers}, step), plain(x)
        assert torch.equal(found, expected)
        for optimizer, outputs in ((ours, found), (theirs, expected)):
            optimizer.zero_grad()
            outputs.square().sum().backward()
            optimizer.step()
        module.settle()
    assert all(torch.equal(w, dict(plain.named_parameters())[name]) for name, w in module.hardened().items())
    assert torch.equal(module.eval().deployed(x), plain.eval()(x))
