"""The exact size of a network: packed bytes are as many as the formula says, and nothing is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from metasched.network.quantize import quantize
from metasched.network.quantized import QuantizedNetwork
from metasched.network.recipe import Recipe
from metasched.network.size import TensorSize, network_bytes, pack_codes, packed_size, sizes
from metasched.quantizers.levels import level_set


def network(method: str = "ste", **recipe: object) -> QuantizedNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    return quantize(model, Recipe(method, **recipe), torch.zeros(2, 1, 4, 4))  # pyright: ignore[reportArgumentType]


@given(st.integers(1, 9), st.data())
def test_codes_are_packed_without_gaps(bits: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    packed = pack_codes(np.array(codes, np.int64), bits)
    assert len(packed) == packed_size(len(codes), bits)
    number = int.from_bytes(packed, "little")  # read back as one long integer
    assert [number >> (bits * i) & (2**bits - 1) for i in range(len(codes))] == codes


@pytest.mark.parametrize(
    ("levels", "bits"), [("binary", 1), ("ternary", 2), ("balanced3", 3), ("int3", 3), ("pow2_3", 3), ("int8", 8)]
)
def test_bytes_of_levels_scales_and_floats(levels: str, bits: int) -> None:
    found = sizes(network(weights=levels, activations="uint2", scale="max", granularity="channel"))
    assert len(level_set(levels).levels) <= 2**bits
    assert {(t.name, t.what, t.elements, t.bits) for t in found} == {
        ("0.weight", "levels", 27, bits),
        ("0.weight", "scale", 3, 32),
        ("0.bias", "float", 3, 32),
        ("1.weight", "float", 3, 32),
        ("1.bias", "float", 3, 32),
        ("1.running_mean", "float", 3, 32),
        ("1.running_var", "float", 3, 32),
        ("4.weight", "levels", 60, bits),
        ("4.weight", "scale", 5, 32),
        ("4.bias", "float", 5, 32),
        ("6.weight", "float", 10, 32),
        ("6.bias", "float", 2, 32),
        ("0", "activation scale", 1, 32),
        ("4", "activation scale", 1, 32),
    }
    assert sum(t.bytes for t in found) == -(-27 * bits // 8) - (-60 * bits // 8) + 4 * (3 + 5 + 15 + 5 + 12 + 2)


def test_the_packed_weights_of_a_network_are_as_large_as_it_is_said() -> None:
    net = network(weights="balanced3", activations=None, scale="max")
    params, state = net.initialize(dict(net.module.named_parameters()), net.neutral(), seed=0)
    hard = net.harden(params, state)
    for layer in net.layers:
        codes = torch.round(hard[layer.weight_key] / state[f"{layer.name}/scale"]).long() + 3
        (said,) = (t for t in sizes(net) if t.name == layer.weight_key and t.what == "levels")
        assert len(pack_codes(codes.numpy(), 3)) == said.bytes


def test_the_float_network_has_four_bytes_a_number() -> None:
    net = network("float")
    numbers = sum(p.numel() for p in net.module.parameters()) + 6
    assert network_bytes(net) == 4 * numbers


def test_rules_by_layer_count() -> None:
    plain = network(weights="ternary", activations=None, scale="max")
    mixed = network(weights="ternary", activations=None, scale="max", rules=[{"match": "4", "levels": "int8"}])
    assert network_bytes(mixed) - network_bytes(plain) == 60 - 15


@pytest.mark.parametrize("method", ["joint", "inq", "gxnor", "pruning", "oscillation"])
def test_other_methods_store_levels_too(method: str) -> None:
    found = sizes(network(method, weights="ternary", activations=None, scale="max" if method != "gxnor" else "unit"))
    assert TensorSize("0.weight", "levels", 27, 2) in found


def test_transposed_weights_and_embeddings() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 1, 3))
    net = quantize(model, Recipe("ste", granularity="channel", scale="max", activations=None), torch.zeros(1, 2, 4, 4))
    assert TensorSize("0.weight", "scale", 6, 32) in sizes(net)


def test_the_size_of_bayesian_bits_is_known_after_training_only() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    recipe = Recipe("bayesian_bits", activation_levels=None)
    net = quantize(model, recipe.build(), torch.zeros(1, 8), last=False)
    assert network_bytes(net) is None
    params, state = net.initialize(dict(net.module.named_parameters()), net.neutral(), 0)
    state["0/kept"][:2] = 0.0  # two of six channels are pruned, and the others have 4 bits
    state["0/open"][1:] = 0.0
    found = {(t.name, t.what): t.bytes for t in sizes(net, params, state)}
    assert found["0.weight", "levels"] == 4 * 8 * 4 // 8
    assert found["0.weight", "channels"] == 1 and found["0.weight", "range"] == 4


def test_the_size_of_a_table_of_codes() -> None:
    model = nn.Sequential(nn.Embedding(50, 12), nn.Flatten(), nn.Linear(24, 2))
    net = quantize(model, Recipe("dpq", groups=3, codes=8).build(), torch.zeros(1, 2, dtype=torch.long))
    found = {(t.name, t.what): t.bytes for t in sizes(net)}
    assert found["0.weight", "codes"] == -(-50 * 3 * 3 // 8)
    assert found["0.weight", "codebooks"] == 8 * 12 * 4
