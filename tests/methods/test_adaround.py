"""AdaRound: formulas of the paper, derivatives of any order, what stands still, and brute force on tiny problems."""

from __future__ import annotations

import math

import pytest
import torch

from metasched.core.layer import Layer
from metasched.core.randomness import Draw
from metasched.methods import build_method
from metasched.methods.adaround import ROUNDING, inverse, rectified, regularizer
from metasched.methods.base import State
from metasched.methods.config import MethodConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded

DRAW = Draw(0, 0, 0)


def started(w: torch.Tensor, levels: str = "int3", scale: str = "least_squares") -> tuple[torch.Tensor, State]:
    method = build_method(MethodConfig(name="adaround", levels=levels, scale=scale))
    w, trainable, state = method.initialize(w, {}, DRAW)
    return w, {**state, **trainable}


def test_it_starts_at_the_float_weights_and_ends_at_the_nearest_levels() -> None:
    method = build_method(MethodConfig(name="adaround", levels="int3", scale="max"))
    ste = build_method(MethodConfig(name="ste", levels="int3", scale="max"))
    w, state = started(torch.randn(20, 10), scale="max")
    inside = state["upper"] > state["lower"]
    torch.testing.assert_close(method.weight(w, state, {}, DRAW)[inside], w[inside])
    assert torch.equal(method.harden(w, state, 0.5), ste.harden(w, state, 0.5))


def test_the_weight_is_that_of_the_paper() -> None:
    """W = s clip(floor(W / s) + h(V), n, p) for integer levels n .. p, also beyond the outermost ones."""
    method = build_method(MethodConfig(name="adaround", levels="int3"))
    w, state = started(torch.randn(30, 10))
    assert bool((w / state["scale"] > 3).any() and (w / state["scale"] < -4).any())
    state[ROUNDING] = torch.randn(30, 10)
    h = torch.clip(1.2 * torch.sigmoid(state[ROUNDING]) - 0.1, 0, 1)
    expected = state["scale"] * torch.clip(torch.floor(w / state["scale"]) + h, -4, 3)
    torch.testing.assert_close(method.weight(w, state, {}, DRAW), expected)
    hard = state["scale"] * torch.clip(torch.floor(w / state["scale"]) + (h >= 0.5), -4, 3)
    torch.testing.assert_close(method.harden(w, state, 0.5), hard)


def test_the_penalty_is_that_of_the_paper() -> None:
    method = build_method(MethodConfig(name="adaround"))
    w, state = started(torch.randn(6, 5), "ternary")
    state[ROUNDING] = torch.randn(6, 5)
    h = rectified(state[ROUNDING])
    for beta in (2.0, 3.5, 20.0):
        controls = {"rounding_beta": torch.tensor(beta), "rounding_penalty": torch.tensor(0.3)}
        expected = 0.3 * (1 - (2 * h - 1).abs() ** beta).sum()
        torch.testing.assert_close(method.penalty(w, state, controls), expected, rtol=1e-9, atol=1e-9)


def test_the_inverse_of_the_rectified_sigmoid() -> None:
    h = torch.linspace(0, 1, 101)
    torch.testing.assert_close(rectified(inverse(h)), h)


@pytest.mark.parametrize("beta", [2.0, 2.5, 3.0, 7.0, 20.0])
def test_second_derivatives_where_h_is_a_half(beta: float) -> None:
    """Of 1 - |2 h - 1|^beta they are -8 at beta = 2 and 0 above, where torch's own of |x|^beta are 0 and NaN."""
    h = torch.tensor([0.5], requires_grad=True)
    exponent = torch.tensor(beta, requires_grad=True)
    (first,) = torch.autograd.grad(regularizer(h, exponent), h, create_graph=True)
    second, mixed = torch.autograd.grad(first.sum(), [h, exponent])
    assert first.item() == 0
    assert float(second) == pytest.approx(-8.0 if beta == 2 else 0.0, abs=0.1 if beta == 2.5 else 1e-4)
    assert math.isfinite(float(mixed))


@pytest.mark.parametrize("beta", [2.0, 4.0, 12.0])
def test_derivatives_against_central_differences(beta: float) -> None:
    h, exponent = torch.rand(8, requires_grad=True), torch.tensor(beta, requires_grad=True)
    assert torch.autograd.gradcheck(regularizer, (h, exponent))
    assert torch.autograd.gradgradcheck(regularizer, (h, exponent))


def test_the_weight_stands_still_and_only_v_is_trained() -> None:
    method = build_method(MethodConfig(name="adaround"))
    w, state = started(torch.randn(4, 3), "ternary")
    assert torch.equal(method.update(w, w + 1, state, {}, DRAW)[0], w)


def test_published_schedules_have_a_warm_start() -> None:
    layer = Layer("0", 0.0, "linear", "weight", 4, 16, 1.6)
    for name, middle in (("adaround_cosine", 11.0), ("adaround_linear", 11.0)):
        values = hand_coded("adaround")[name](progress_of_steps(101), [layer])
        beta, penalty = values["rounding_beta"][:, 0], values["rounding_penalty"][:, 0]
        assert (penalty[:20] == 0).all() and (penalty[20:] == 0.01).all()
        assert beta[0] == beta[20] == 20 and beta[60] == pytest.approx(middle) and beta[100] == 2
    cosine = hand_coded("adaround")["adaround_cosine"](progress_of_steps(101), [layer])["rounding_beta"][:, 0]
    u = 0.25  # of the way after the warm start
    assert float(cosine[40]) == pytest.approx(2 + 0.5 * 18 * (1 + math.cos(u * math.pi)))
    constant = hand_coded("adaround")["adaround_constant"](progress_of_steps(3), [layer])
    assert constant["rounding_beta"].eq(2).all() and constant["rounding_penalty"].eq(0.01).all()
