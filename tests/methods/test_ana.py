"""ANA, and the joint method as ANA and as INQ."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from metasched.core.randomness import Draw
from metasched.methods import build_method
from metasched.methods.base import Method, State
from metasched.methods.config import MethodConfig
from metasched.quantizers.levels import level_set
from metasched.quantizers.noise import NOISE_FAMILIES

DRAW = Draw(seed=2, step=4, layer=0)
NOISES = {"uniform", "triangular", "normal", "logistic"}


def controls(scale: float, mean: float = 0.0, freeze: float | None = None) -> dict[str, torch.Tensor]:
    noise = {"weight_noise": torch.tensor(scale), "activation_noise": torch.tensor(scale)}
    noise["noise_mean"] = torch.tensor(mean)
    return noise if freeze is None else {**noise, "freeze_fraction": torch.tensor(freeze)}


def start(
    method: Method, values: dict[str, torch.Tensor], shape: tuple[int, ...] = (16, 25)
) -> tuple[torch.Tensor, State]:
    w, _, state = method.initialize(torch.randn(shape), values, Draw(2, 0, 0))
    return w, method.prepare(w, state, values, DRAW)


@pytest.mark.parametrize("levels", ["ternary", "pow2_4", "uint2"])
def test_weights_start_around_thresholds(levels: str) -> None:
    method = build_method(MethodConfig(name="ana", levels=levels))
    w, state = start(method, controls(0.5), (40, 5, 3, 3))
    assert set(state) == {"scale"} and state["scale"].unique().tolist() == [1.0]
    thresholds = torch.tensor(level_set(levels).thresholds)
    radius = 1 / math.sqrt(5 * 3 * 3)
    distance, nearest = (w[..., None] - thresholds).abs().min(-1)
    assert 0.99 * radius < distance.max().item() <= radius or levels == "pow2_4"  # there, windows overlap
    assert distance.max().item() <= radius
    if levels != "pow2_4":
        counts = nearest.flatten().bincount(minlength=len(thresholds)).numpy()
        assert stats.chisquare(counts).pvalue > 0.001
        offsets = (w - thresholds[nearest]).flatten().numpy() / radius
        assert stats.kstest(offsets, stats.uniform(-1, 2).cdf).pvalue > 0.001


@pytest.mark.parametrize("scale", ["unit", "max"])
@pytest.mark.parametrize("name", ["ana", "joint"])
def test_the_first_mean_shifts_the_initial_weights(name: str, scale: str) -> None:
    method = build_method(MethodConfig(name=name, scale=scale, granularity="channel"))  # pyright: ignore
    w = torch.randn(8, 6)
    freeze = 0.0 if name == "joint" else None
    at_zero, _, state = method.initialize(w, controls(0.5, 0.0, freeze), DRAW)
    shifted, _, same = method.initialize(w, controls(0.5, -0.5, freeze), DRAW)
    assert torch.equal(shifted, at_zero - 0.5 * state["scale"])
    assert torch.equal(state["scale"], same["scale"])
    # and the noise has the same mean, so that the shifted jumps meet them where they were
    seen = method.weight(shifted, {**same, "frozen": torch.zeros_like(w)}, controls(0.5, -0.5, freeze), DRAW)
    before = method.weight(at_zero, {**state, "frozen": torch.zeros_like(w)}, controls(0.5, 0.0, freeze), DRAW)
    assert torch.allclose(seen, before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", sorted(NOISES))
def test_weight_noise_is_the_half_width_in_quanta_in_every_family(noise: str) -> None:
    """Of the central 95 % of the noise, or of all of it: the share of quanta that noise can push over a threshold."""
    assert set(NOISE_FAMILIES) == NOISES
    config = MethodConfig(name="ana", noise=noise, forward="expectation", levels="binary", scale="max")  # pyright: ignore
    method = build_method(config)
    state = {"scale": torch.tensor([[2.0]])}
    half_width = 0.3
    edges = torch.tensor([[-2.0 * half_width, 2.0 * half_width]])  # the threshold is at 0, a quantum is 2
    share = (method.weight(edges, state, controls(half_width), DRAW) / 2 + 1) / 2
    covered = (share[0, 1] - share[0, 0]).item()
    assert covered == pytest.approx(1.0 if noise in ("uniform", "triangular") else 0.95, abs=1e-12)


@pytest.mark.parametrize("control", ["weight_noise", "activation_noise", "noise_mean"])
@pytest.mark.parametrize("noise", ["triangular", "normal", "logistic"])
def test_derivatives_in_the_controls_against_finite_differences(noise: str, control: str) -> None:
    method = build_method(MethodConfig(name="ana", noise=noise, forward="expectation", scale="max"))  # pyright: ignore
    values = controls(0.37, 0.11)
    w, state = start(method, values)
    x, of_w, of_x = torch.randn(50), torch.randn(16, 25), torch.randn(50)

    def function(value: torch.Tensor) -> torch.Tensor:
        now = {**values, control: value}
        seen, out = method.weight(w, state, now, DRAW), method.activation(x, state, now, DRAW)
        return (of_w * seen).sum() + (of_x * out).sum()

    value = values[control].clone().requires_grad_()
    (found,) = torch.autograd.grad(function(value), value)
    h = 1e-6
    with torch.no_grad():
        difference = (function(value + h) - function(value - h)) / (2 * h)
    assert found.item() == pytest.approx(difference.item(), rel=1e-6)
    assert np.sign(found.item()) == np.sign(difference.item())


def test_random_draws_are_new_in_each_step_layer_and_tensor() -> None:
    method = build_method(MethodConfig(name="ana", forward="random", noise="uniform"))
    state = {"scale": torch.ones(1, 1)}
    w = torch.full((30, 30), 0.5)
    draws = [Draw(0, 0, 0), Draw(0, 1, 0), Draw(0, 0, 1), Draw(1, 0, 0)]
    seen = [method.weight(w, state, controls(0.5), d) for d in draws]
    seen += [method.activation(w, state, controls(0.5), d) for d in draws]
    for i, a in enumerate(seen):
        for b in seen[:i]:
            assert 0.4 < (a == b).double().mean().item() < 0.6  # half of 900 independent coins


@pytest.mark.parametrize("noise", sorted(NOISES))
def test_fixed_backward_has_the_start_width_whatever_the_noise(noise: str) -> None:
    start = build_method(MethodConfig(name="ana", noise=noise, forward="expectation"))  # pyright: ignore
    fixed = build_method(MethodConfig(name="ana", noise=noise, forward="mode", backward="fixed"))  # pyright: ignore
    x = torch.randn(100).requires_grad_()
    (expected,) = torch.autograd.grad(start.activation(x, {}, controls(0.5, 0.1), DRAW).sum(), x)
    for scale in (0.5, 0.1, 0.0):
        (slope,) = torch.autograd.grad(fixed.activation(x, {}, controls(scale, 0.1), DRAW).sum(), x)
        assert torch.equal(slope, expected)


def test_the_2019_form_has_the_derivative_of_clip_in_all_steps() -> None:
    method = build_method(MethodConfig(name="ana", noise="uniform", forward="expectation", backward="fixed"))
    x = torch.empty(100).uniform_(-2, 2).requires_grad_()
    for scale in (0.5, 0.1, 0.0):
        (slope,) = torch.autograd.grad(method.activation(x, {}, controls(scale), DRAW).sum(), x)
        assert torch.equal(slope, (x.abs() < 1).double())


def test_activation_quanta_rescale_the_input_and_the_output() -> None:
    half = build_method(MethodConfig(name="ana", forward="expectation", activation_scale=0.5))
    unit = build_method(MethodConfig(name="ana", forward="expectation"))
    x = torch.randn(50)
    expected = unit.activation(2 * x, {}, controls(0.3, 0.1), DRAW) / 2
    assert torch.equal(half.activation(x, {}, controls(0.3, 0.1), DRAW), expected)


@pytest.mark.parametrize("forward", ["expectation", "mode", "random"])
@pytest.mark.parametrize("partition", ["magnitude", "random", "relaxation"])
def test_joint_without_freezing_is_ana(partition: str, forward: str) -> None:
    config = {"noise": "logistic", "forward": forward, "scale": "max", "granularity": "channel"}
    ana = build_method(MethodConfig(name="ana", **config))  # pyright: ignore
    joint = build_method(MethodConfig(name="joint", partition=partition, **config))  # pyright: ignore
    w = torch.randn(8, 6)
    w_ana, _, of_ana = ana.initialize(w, controls(0.5, -0.2), DRAW)
    w_joint, _, of_joint = joint.initialize(w, controls(0.5, -0.2, 0.0), DRAW)
    assert torch.equal(w_ana, w_joint)
    for scale, mean in ((0.5, -0.2), (0.2, 0.1), (0.0, 0.0)):
        values, frozen = controls(scale, mean), controls(scale, mean, 0.0)
        of_joint = joint.prepare(w_joint, of_joint, frozen, DRAW)
        a = ana.weight(w_ana, of_ana, values, DRAW)
        assert torch.equal(a, joint.weight(w_joint, of_joint, frozen, DRAW))
        x = torch.randn(20)
        assert torch.equal(ana.activation(x, of_ana, values, DRAW), joint.activation(x, of_joint, frozen, DRAW))
        w_ana, of_ana = ana.update(w_ana, w_ana - 0.1 * a, of_ana, values, DRAW)
        w_joint, of_joint = joint.update(w_joint, w_joint - 0.1 * a, of_joint, frozen, DRAW)
        assert torch.equal(w_ana, w_joint)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.65, 1.0])
def test_joint_under_static_uniform_noise_is_inq_with_clipped_live_weights(fraction: float) -> None:
    """Ternary, half-width 0.5, expectation: the noisy stair is clip(w, -1, 1), on multiples of 2^-20 in all bits."""
    joint = build_method(MethodConfig(name="joint", noise="uniform", forward="expectation", scale="unit"))
    inq = build_method(MethodConfig(name="inq", scale="unit"))
    w = torch.randint(-(2**21), 2**21, (16, 25)) / 2**20
    values = controls(0.5, 0.0, fraction)
    _, _, of_joint = joint.initialize(w, values, DRAW)
    _, _, of_inq = inq.initialize(w, values, DRAW)
    of_joint, of_inq = (m.prepare(w, s, values, DRAW) for m, s in ((joint, of_joint), (inq, of_inq)))
    assert torch.equal(of_joint["frozen"], of_inq["frozen"])
    seen = joint.weight(w, of_joint, values, DRAW)
    assert torch.equal(seen, inq.weight(w.clamp(-1, 1), of_inq, values, DRAW))
    proposed = w + torch.randn_like(w)
    updated = joint.update(w, proposed, of_joint, values, DRAW)[0]
    assert torch.equal(updated, inq.update(w, proposed, of_inq, values, DRAW)[0])
