"""Rounding with a randomness: what is drawn, the mean, STE as its limit, and its integers on a layer."""

from __future__ import annotations

import math

import pytest
import torch

from metasched.core.randomness import Draw
from metasched.methods import build_method
from metasched.methods.base import Method, State
from metasched.methods.config import MethodConfig
from metasched.quantizers.levels import level_set


def built(**given: object) -> Method:
    return build_method(MethodConfig(name="rounding", **{"levels": "int4", "scale": "least_squares", **given}))


def controls(weights: float, activations: float | None = None) -> dict[str, torch.Tensor]:
    of_activations = weights if activations is None else activations
    return {"weight_randomness": torch.tensor(weights), "activation_randomness": torch.tensor(of_activations)}


def start(method: Method, *shape: int) -> tuple[torch.Tensor, State]:
    w, trainable, state = method.initialize(torch.randn(*shape), {}, Draw(0, 0, 0))
    return w, {**state, **trainable}


@pytest.mark.parametrize("levels", ["int4", "pow2_4", "midrise2", "normal3"])
def test_stochastic_rounding_has_no_bias_on_any_level_set(levels: str) -> None:
    method = built(levels=levels, activation_levels=levels, scale="max", granularity="channel")
    w, state = start(method, 6, 5)
    x = 0.5 * torch.randn(30)
    draws = [Draw(1, step, 0) for step in range(400)]
    seen = torch.stack([method.weight(w, state, controls(1.0), d) for d in draws])
    outputs = torch.stack([method.activation(x, state, controls(1.0), d) for d in draws])
    bounds = level_set(levels).levels[0], level_set(levels).levels[-1]
    gap = max(level_set(levels).jumps)
    pairs = (
        (seen, (w / state["scale"]).clamp(*bounds) * state["scale"], gap * state["scale"]),
        (outputs, x.clamp(*bounds), torch.tensor(gap)),
    )
    for found, mean, unit in pairs:
        error = 5 * found.std(0) / math.sqrt(len(draws)) + 0.02 * unit  # a rare level may not have been drawn
        assert ((found.mean(0) - mean).abs() <= error).all()


def test_weights_and_activations_have_a_randomness_each_and_fresh_draws_in_each_step() -> None:
    method = built()
    w, state = start(method, 30, 30)
    x = torch.randn(900)
    hard, output = method.harden(w, state, 0.5), method.harden_activation(x, state, 0.5)
    one, two = (method.weight(w, state, controls(1.0, 0.0), Draw(0, step, 0)) for step in (1, 2))
    assert not torch.equal(one, two) and not torch.equal(one, hard)
    assert torch.equal(method.activation(x, state, controls(1.0, 0.0), Draw(0, 1, 0)), output)
    assert torch.equal(method.weight(w, state, controls(0.0, 1.0), Draw(0, 1, 0)), hard)
    assert not torch.equal(method.activation(x, state, controls(0.0, 1.0), Draw(0, 1, 0)), output)
    half = method.weight(w, state, controls(0.5), Draw(0, 1, 0))
    assert 0 < int((half != hard).sum()) < int((one != hard).sum())


@pytest.mark.parametrize("scale", ["max", "learned"])
def test_to_the_nearest_level_it_is_ste_with_its_derivatives(scale: str) -> None:
    method, ste = built(scale=scale), build_method(MethodConfig(name="ste", levels="int4", scale=scale))
    w, state = start(method, 8, 8)
    x, draw = (3 * torch.randn(100)).requires_grad_(), Draw(0, 4, 1)
    at = [w.requires_grad_(), state["scale"].requires_grad_()]
    g = torch.randn_like(w)
    ours, theirs = method.weight(w, state, controls(0.0), draw), ste.weight(w, state, {}, draw)
    assert torch.equal(ours, theirs)
    slopes = [torch.autograd.grad((seen * g).sum(), at) for seen in (ours, theirs)]
    assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))
    ours, theirs = method.activation(x, state, controls(0.0), draw), ste.activation(x, state, {}, draw)
    assert torch.equal(ours, theirs)
    assert torch.equal(torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(theirs.sum(), x)[0])


def test_without_quantized_activations_it_has_one_control() -> None:
    assert [c.name for c in built(activation_levels=None).controls] == ["weight_randomness"]


@pytest.mark.parametrize("levels", ["int4", "uint8", "int8", "balanced4"])
def test_its_levels_are_those_of_torchs_fake_quantization(levels: str) -> None:
    """Off ties, which torch rounds to even: ours upwards."""
    method, known = built(levels=levels, scale="max"), level_set(levels).levels
    w, state = start(method, 20, 20)
    w, state["scale"] = 2 * w, torch.full((1, 1), 0.125)  # torch keeps a scale in float32
    theirs = torch.fake_quantize_per_tensor_affine(w, 0.125, 0, int(known[0]), int(known[-1]))
    assert torch.equal(method.harden(w, state, 0.5), theirs)


def test_an_integer_product_is_the_float_one_within_one_level() -> None:
    """A layer of 4-bit weights and activations, whose sum is put on 8 bits: in integers, and in float32."""
    method = built(levels="int4", activation_levels="uint4", scale="max", granularity="channel", activation_scale=0.25)
    w, state = start(method, 16, 64)
    w, x = method.harden(w, state, 0.5), method.harden_activation(2 * torch.randn(200, 64), state, 0.5)
    step = (x @ w.T).abs().max().item() / 127
    integers = (x / 0.25).round().long() @ (w / state["scale"]).round().long().T
    multiplier = (state["scale"].flatten() * 0.25 / step * 2**31).round().long()  # 32 bits, then a rounding shift
    ours = (integers * multiplier + 2**30) >> 31
    theirs = ((x.float() @ w.float().T) / step).round().long()
    assert (ours - theirs).abs().max() <= 1
    assert (ours == theirs).double().mean() > 0.99
