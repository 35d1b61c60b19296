"""Packed weights: the same bits, in the bytes that the account says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from metasched.contrib.packed import bytes_kept, pack_state, train_packed, unpack_state
from metasched.contrib.packing import bits_of, pack, unpack
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.models import build_model
from metasched.network.quantize import quantize
from metasched.quantizers.levels import level_set
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.loop import train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem


def problem(method: MethodConfig, model: str = "convnet", width: int = 8, steps: int = 4) -> InnerProblem:
    draws = torch.Generator().manual_seed(5)
    shape = (1, 8, 8) if model == "convnet" else (3, 32, 32)
    part = Split(torch.randn(20, *shape, generator=draws), torch.arange(20) % 10)
    part = Split(part.x.to(torch.get_default_dtype()), part.y)

    def build() -> torch.nn.Module:
        return build_model(model, shape, 10, width).to(part.x.dtype)

    task = SupervisedTask("random", part, part, part, build, F.cross_entropy, F.cross_entropy, batch_size=10)
    rule, hyper = recipe(OptimizerConfig(lr=0.05))
    return InnerProblem(quantize(build(), build_method(method), part.x[:2]), task, rule, hyper, steps, seed=1)


@given(
    st.integers(1, 70), st.sampled_from(["binary", "ternary", "states2", "int4", "states4", "uint8"]), st.integers(0)
)
def test_states_go_through_packing(n: int, name: str, seed: int) -> None:
    levels = level_set(name)
    draws = torch.Generator().manual_seed(seed % 2**31)
    scale = 0.1 + torch.rand(n, 1, generator=draws)
    w = torch.tensor(levels.levels)[torch.randint(len(levels.levels), (n, 3), generator=draws)] * scale
    packed = pack(w, scale, levels)
    assert packed.dtype == torch.uint8 and packed.shape == (-(-3 * n * bits_of(levels) // 8),)
    assert torch.equal(unpack(packed, w.shape, scale, levels), w)


def test_layout_of_a_byte() -> None:
    w = torch.tensor([1.0, -1.0, 0.0, 1.0, 1.0])  # states 2, 0, 1, 2 and 2
    assert pack(w, torch.ones(1), level_set("ternary")).tolist() == [2 + (0 << 2) + (1 << 4) + (2 << 6), 2]


def test_more_than_256_levels_do_not_fit() -> None:
    with pytest.raises(AssertionError, match="256"):
        bits_of(level_set("states8"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "method",
    [
        MethodConfig(name="gxnor"),
        MethodConfig(name="gxnor", levels="states3", scale="max", granularity="channel"),
        MethodConfig(name="metropolis", scale="least_squares"),
    ],
    ids=["gxnor", "gxnor_states", "metropolis"],
)
def test_packed_training_has_the_bits_of_the_loop(method: MethodConfig, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    inner = problem(method)
    controls = {"temperature": torch.full((inner.steps, len(inner.network.layers)), 0.7)}
    expected, found = train(inner, controls), train_packed(inner, controls)
    assert torch.equal(found.losses, expected.losses)
    for a, b in zip(found.state, expected.state, strict=True):
        assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
    again = unpack_state(inner.network, pack_state(inner.network, expected.state))
    assert list(again.params) == list(expected.state.params)


def test_methods_with_float_weights_cannot_be_packed() -> None:
    inner = problem(MethodConfig(name="ste"))
    with pytest.raises(AssertionError, match="without float weights"):
        pack_state(inner.network, inner.initial({}))


def test_weights_take_a_sixteenth_of_float_shadow_weights() -> None:
    """The issue's bound is a third. Adam's moments are in float in both, and are counted by themselves."""
    torch.set_default_dtype(torch.float32)
    shadow, discrete = (problem(MethodConfig(name=name), "vgg7", width=16) for name in ("ste", "gxnor"))
    n = sum(layer.num_weights for layer in discrete.network.layers)
    first = {"temperature": torch.ones(len(discrete.network.layers))}
    float_bytes = bytes_kept(shadow.network, shadow.initial({}))
    state = discrete.initial(first)
    packed_bytes = bytes_kept(discrete.network, pack_state(discrete.network, state))
    assert float_bytes["weights"] == bytes_kept(discrete.network, state)["weights"] == 4 * n
    assert packed_bytes["weights"] == sum(-(-layer.num_weights // 4) for layer in discrete.network.layers)
    assert packed_bytes["weights"] <= float_bytes["weights"] / 3
    assert packed_bytes["moments"] == float_bytes["moments"] == 8 * n
    assert packed_bytes["method"] == float_bytes["method"] == 4 * len(discrete.network.layers)
    assert packed_bytes["rest"] == float_bytes["rest"]
    everything = [
        t.numel() * t.element_size()
        for part in (state.params, state.buffers, state.optimizer, state.method)
        for t in part.values()
    ]
    assert sum(bytes_kept(discrete.network, state).values()) == sum(everything)


def test_other_parameters_are_not_packed() -> None:
    inner = replace(problem(MethodConfig(name="gxnor")), steps=1)
    packed = pack_state(inner.network, inner.initial({"temperature": torch.ones(3)}))
    assert set(packed.weights) == {f"conv{i}.weight" for i in (1, 2, 3)}
    assert "linear.weight" in packed.rest.params and not set(packed.weights) & set(packed.rest.params)
