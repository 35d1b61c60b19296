"""The gradient of a stair, differentiated in closed form: against finite differences and differentiable operations."""

from __future__ import annotations

import pytest
import torch

from metasched.quantizers import stair as stairs
from metasched.quantizers import surrogate
from metasched.quantizers.levels import LevelSet, ternary
from metasched.quantizers.noise import NOISE_FAMILIES
from metasched.quantizers.stair import stair, times
from metasched.quantizers.surrogate import hard_with_width

UNEVEN = LevelSet((-1.5, -0.25, 0.0, 2.0))
families = pytest.mark.parametrize("family", NOISE_FAMILIES)


def away_from_kinks(levels: LevelSet, n: int) -> torch.Tensor:
    """Values at which no z_k, for a mean of 0.1 and a scale from 0.4 to 0.6, is near 0 or 1."""
    x = torch.empty(200 * n).uniform_(-2, 2)
    z = (x[:, None] - 0.1 - torch.tensor(levels.thresholds)).abs()
    return x[((z > 0.02) & ((z < 0.38) | (z > 0.62))).all(1)][:n]


@families
@pytest.mark.parametrize("levels", [ternary(), UNEVEN], ids=["ternary", "uneven"])
def test_against_finite_differences(family: str, levels: LevelSet) -> None:
    x = away_from_kinks(levels, 6).reshape(2, 3).requires_grad_()
    grad = torch.randn(2, 3, requires_grad=True)
    mean = torch.tensor(0.1, requires_grad=True)
    for scale in (torch.tensor(0.5), torch.tensor([[0.4], [0.6]])):

        def product(*inputs: torch.Tensor) -> torch.Tensor:
            return times(*inputs, levels=levels, family=family)

        assert torch.autograd.gradcheck(product, (grad, x, mean, scale.requires_grad_()))


@families
def test_a_third_derivative_is_that_of_the_differentiable_operations(family: str) -> None:
    x, grad = away_from_kinks(UNEVEN, 5).requires_grad_(), torch.randn(5, requires_grad=True)
    inputs = [grad, x, torch.tensor(0.1, requires_grad=True), torch.tensor(0.5, requires_grad=True)]

    def product(*inputs: torch.Tensor) -> torch.Tensor:
        return times(*inputs, levels=UNEVEN, family=family)

    assert torch.autograd.gradgradcheck(product, inputs)


def quantized(kind: str, x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, family: str) -> torch.Tensor:
    if kind == "surrogate":
        return hard_with_width(x, ternary(), scale, family) + 0 * mean
    fixed = 0.4 if kind == "fixed" else None
    return stair(x, ternary(), mean=mean, scale=scale, family=family, forward="expectation", backward_scale=fixed)


@families
@pytest.mark.parametrize("kind", ["stair", "fixed", "surrogate"])
def test_what_an_inner_step_sends_back(kind: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient in x alone, as of parameters, then its derivative in all that it depends on."""
    where = {"surrogate": surrogate}.get(kind, stairs)
    made: list[torch.Tensor] = []

    def counted(*given: torch.Tensor, **more: object) -> torch.Tensor:
        made.append(times(*given, **more))  # pyright: ignore[reportArgumentType]
        return made[-1]

    monkeypatch.setattr(where, "times", counted)

    def found() -> list[torch.Tensor]:
        torch.manual_seed(1)
        x, mean, scale, u = torch.randn(4, 5), torch.tensor(0.1), torch.tensor(0.5), torch.randn(4, 5)
        for leaf in (x, mean, scale, u):
            leaf.requires_grad_()
        y = quantized(kind, x, mean * 1, scale * 1, family)
        (first,) = torch.autograd.grad((y * u).sum(), x, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), [x, mean, scale, u], allow_unused=True)
        return [first.detach(), *(torch.zeros(()) if g is None else g for g in second)]

    closed = found()
    assert made
    monkeypatch.setattr(where, "closed", lambda: False)
    plain = found()
    assert torch.equal(closed[0], plain[0])
    for a, b in zip(closed[1:], plain[1:], strict=True):
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-13)


def test_where_there_is_no_noise_there_is_no_derivative() -> None:
    inputs = [torch.randn(2, 3), torch.randn(2, 3), torch.tensor(0.0), torch.tensor([[0.0], [0.5]])]
    leaves = [t.requires_grad_() for t in inputs]
    found = torch.autograd.grad(times(*leaves, levels=ternary(), family="triangular").sum(), leaves)
    assert all(bool(g.isfinite().all()) for g in found)
    assert not any(bool(g[0].any()) for g in (found[0], found[1], found[3]))
