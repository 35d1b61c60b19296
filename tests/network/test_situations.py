"""Situations that users bring to ``prepare`` and ``convert``: what is changed before, within and after them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from metasched import MetaschedError, MethodConfig, QuantizedModule, build_method, convert, inspect, prepare, quantize

X = torch.arange(80.0).reshape(10, 8).sin()
STE = MethodConfig(name="ste", scale="max")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("door", [prepare, quantize, lambda model, *args: inspect(model, *args)])
def test_what_is_quantized_already_is_refused(door: Callable[..., Any]) -> None:
    method = build_method(STE)
    network = quantize(mlp(), method, X)
    for model in (prepare(mlp(), STE, X)[0], QuantizedModule(network, {layer.name: {} for layer in network.layers})):
        with pytest.raises(MetaschedError, match=r"^model: is quantized already \("):
            door(model, method, X)
    door(convert(prepare(mlp(), STE, X)[0]), method, X)


def test_pruning_and_parametrizing_a_quantized_weight_is_refused() -> None:
    for change in (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        parametrizations.weight_norm,
        parametrizations.orthogonal,
    ):
        module, _ = prepare(mlp(), STE, X)
        with pytest.raises(MetaschedError, match=r"cannot be pruned or parametrized \(weight\) once it is quantized"):
            change(module[2])
    prune.l1_unstructured(module[4], "weight", 0.5)  # which is not quantized
    assert int(torch.eq(module[4].weight, 0).sum()) == 24


def test_weights_that_hooks_compute_are_converted_too() -> None:
    model = mlp()
    nn.utils.spectral_norm(model[4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, _ = prepare(model, MethodConfig(name="ste", activation_levels=None), X)
    module(X)
    plain = convert(module)
    assert torch.equal(plain(X), module.eval()(X))
