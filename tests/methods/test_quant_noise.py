"""Quant-Noise: shares, blocks, the mean over masks, the straight-through derivative, and that a share of 1 is STE."""

from __future__ import annotations

import math

import pytest
import torch

from metasched.core.randomness import Draw
from metasched.methods import build_method
from metasched.methods.base import Method, State
from metasched.methods.config import MethodConfig


def built(**given: object) -> Method:
    return build_method(MethodConfig(name="quant_noise", levels="int4", scale="least_squares", **given))


def controls(share: float, activations: float | None = None) -> dict[str, torch.Tensor]:
    of_activations = share if activations is None else activations
    return {"weight_share": torch.tensor(share), "activation_share": torch.tensor(of_activations)}


def start(method: Method, *shape: int) -> tuple[torch.Tensor, State]:
    """A weight that is nowhere on a level, and its state."""
    w, _, state = method.initialize(torch.randn(*shape), {}, Draw(0, 0, 0))
    return w, state


def quantized(method: Method, w: torch.Tensor, state: State, share: float, step: int) -> torch.Tensor:
    """Where a step sees levels."""
    seen = method.weight(w, state, controls(share), Draw(5, step, 2))
    hard = method.harden(w, state, 0.5)
    assert bool(((seen == hard) | (seen == w)).all())
    return seen == hard


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_each_step_quantizes_another_random_share(share: float) -> None:
    method = built()
    w, state = start(method, 50, 40)
    masks = [quantized(method, w, state, share, step) for step in range(20)]
    counts = torch.tensor([float(m.sum()) for m in masks])
    deviation = math.sqrt(2000 * share * (1 - share))
    assert ((counts - 2000 * share).abs() < 5 * deviation).all()
    of_each = torch.stack(masks).to(w.dtype).mean(0)  # of 20 steps: independent from step to step
    assert of_each.var().item() == pytest.approx(share * (1 - share) / 20, rel=0.2)


def test_weights_of_a_block_share_a_draw_and_the_last_block_is_shorter() -> None:
    method = built(noise_block=4)
    w, state = start(method, 200, 2, 5)  # blocks of 4, 4 and 2 in each of 200 channels
    found = quantized(method, w, state, 0.5, 3).flatten(1)
    blocks = [found[:, :4], found[:, 4:8], found[:, 8:]]
    assert all(bool((b == b[:, :1]).all()) for b in blocks)
    heads = torch.stack([b[:, 0] for b in blocks]).to(w.dtype)
    assert heads.corrcoef().triu(1).abs().max() < 0.3
    assert 240 < heads.sum() < 360


def test_a_block_longer_than_a_channel_is_the_whole_channel() -> None:
    method = built(noise_block=1000)
    w, state = start(method, 30, 6)
    found = quantized(method, w, state, 0.5, 0)
    assert bool((found == found[:, :1]).all()) and 0 < int(found[:, 0].sum()) < 30


def test_the_mean_over_the_masks_is_a_blend() -> None:
    method = built()
    w, state = start(method, 6, 5)
    x = 2 * torch.randn(30)
    draws = [Draw(1, step, 0) for step in range(2000)]
    seen = torch.stack([method.weight(w, state, controls(0.3), d) for d in draws])
    outputs = torch.stack([method.activation(x, state, controls(0.3, 0.6), d) for d in draws])
    blend = build_method(MethodConfig(name="blend", levels="int4", scale="least_squares"))
    shares = {"weight_blend": torch.tensor(0.3), "activation_blend": torch.tensor(0.6)}
    for found, mean in (
        (seen, blend.weight(w, state, shares, draws[0])),
        (outputs, blend.activation(x, state, shares, draws[0])),
    ):
        error = 5 * found.std(0) / math.sqrt(len(draws)) + 1e-12
        assert ((found.mean(0) - mean).abs() <= error).all()


def test_the_derivatives_are_those_of_the_mean_over_the_masks() -> None:
    method = built()
    w, state = start(method, 6, 5)
    w.requires_grad_()
    given = {name: share.requires_grad_() for name, share in controls(0.4).items()}
    g = torch.randn_like(w)
    draw = Draw(2, 1, 0)
    seen = method.weight(w, state, given, draw)
    hard = method.harden(w, state, 0.5)
    of_w, of_share = torch.autograd.grad((seen * g).sum(), [w, given["weight_share"]])
    assert of_share.item() == pytest.approx(((hard - w) * g).detach().sum().item())
    mask = seen == hard
    (through,) = torch.autograd.grad((hard * g).sum(), w)
    assert torch.equal(of_w, torch.where(mask, through, g))
    x = torch.randn(40)
    (slope,) = torch.autograd.grad(method.activation(x, state, given, draw).sum(), given["activation_share"])
    assert slope.item() == pytest.approx((method.harden_activation(x, state, 0.5) - x.clamp(-1, 1)).sum().item())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_none_is_float_and_of_all_is_ste(share: float) -> None:
    method, ste = built(), build_method(MethodConfig(name="ste", levels="int4", scale="least_squares"))
    w, state = start(method, 8, 8)
    x, draw = 3 * torch.randn(100), Draw(0, 4, 1)
    seen, output = method.weight(w, state, controls(share), draw), method.activation(x, state, controls(share), draw)
    assert torch.equal(seen, ste.weight(w, state, {}, draw) if share else w)
    assert torch.equal(output, ste.activation(x, state, {}, draw) if share else x.clamp(-1, 1))


def test_in_joint_it_leaves_out_a_share_of_what_its_base_does() -> None:
    method = build_method(MethodConfig(name="joint", of="widths+quant_noise", levels="int4", scale="least_squares"))
    names = {c.name for c in method.controls}
    assert names == {"weight_width", "activation_width", "weight_share", "activation_share"}
    w, state = start(method, 40, 40)
    given = {**controls(0.25), "weight_width": torch.tensor(1.0), "activation_width": torch.tensor(1.0)}
    seen = method.weight(w, state, given, Draw(0, 0, 0))
    hard = method.harden(w, state, 0.5)
    assert bool(((seen == hard) | (seen == w)).all()) and 300 < int((seen == hard).sum()) < 500


@pytest.mark.parametrize("block", [0, -1, True, 1.5])
def test_impossible_blocks_are_refused(block: object) -> None:
    with pytest.raises(ValueError, match="noise_block"):
        MethodConfig(name="quant_noise", noise_block=block)
