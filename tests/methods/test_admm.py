"""ADMM: projections by brute force, the recursion of the authors, a changing rho, and the two limits of the blend."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.methods import build_method
from metasched.methods.admm import ADMM, residual
from metasched.methods.base import Method, State
from metasched.methods.config import MethodConfig
from metasched.quantizers.levels import level_set

DRAW = Draw(0, 0, 0)
CONSTRAINTS = ("prune", "quantize", "both")


def built(**given: Any) -> ADMM:
    method = build_method(MethodConfig(name="admm", **{"scale": "max", **given}))
    assert isinstance(method, ADMM)
    return method


def controls(rho: float = 0.5, sparsity: float = 1.0, blend: float = 0.0) -> dict[str, torch.Tensor]:
    return {"rho": torch.tensor(rho), "sparsity": torch.tensor(sparsity), "weight_blend": torch.tensor(blend)}


def start(method: Method, w: torch.Tensor, **given: float) -> tuple[torch.Tensor, State]:
    w, _, state = method.initialize(w, controls(**given), DRAW)
    return w, state


def nearest(w: torch.Tensor, constraint: str, zeros: int, allowed: torch.Tensor) -> float:
    """The smallest squared distance from w [n] to a point with these zeros and levels, over all of them."""
    best = float("inf")
    for chosen in combinations(range(len(w)), zeros if constraint != "quantize" else 0):
        kept = torch.ones(len(w), dtype=torch.bool)
        kept[list(chosen)] = False
        off = w[~kept].square().sum()
        if constraint != "prune":
            off = off + (w[kept, None] - allowed).square().amin(1).sum()
        best = min(best, float(off))
    return best


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("levels", ["ternary", "balanced3", "pow2_3"])
def test_the_projection_is_the_nearest_point_of_the_constraint(constraint: str, levels: str) -> None:
    method = built(constraint=constraint, levels=levels, scale="least_squares", **sparse(constraint, 0.5))
    for _ in range(20):
        w, state = start(method, torch.randn(2, 4))
        state = method.prepare(w, state, controls(), DRAW)
        z = state["projection"]
        allowed = state["scale"].flatten() * torch.tensor(level_set(levels).levels)
        assert float((w - z).square().sum()) == pytest.approx(nearest(w.flatten(), constraint, 4, allowed), abs=1e-12)
        if constraint != "quantize":
            assert int((z == 0).sum()) >= 4
        if constraint != "prune":
            assert (z[..., None] - allowed).abs().amin(-1).max() == 0


def sparse(constraint: str, sparsity: float) -> dict[str, float]:
    """The target, where it has an effect."""
    return {} if constraint == "quantize" else {"sparsity": sparsity}


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_it_is_the_recursion_of_the_authors_with_a_scaled_dual(constraint: str) -> None:
    """On f(W) = |W - A|^2 / 2 by gradient descent; theirs: U = Y / rho, Z = P(W + U), U += W - Z after each round."""
    rho, every, rate, a = 0.7, 3, 0.1, torch.randn(3, 5)
    method = built(
        constraint=constraint, levels="int4", scale="unit", projection_every=every, **sparse(constraint, 0.4)
    )
    now = controls(rho)
    w, state = start(method, torch.zeros(3, 5))
    w = w.clone()

    def project(v: torch.Tensor) -> torch.Tensor:
        found = v.round().clamp(-8, 7) if constraint != "prune" else v.clone()
        if constraint != "quantize":
            found.flatten()[v.abs().flatten().argsort()[:6]] = 0
        return found

    theirs, z, u = w.clone(), project(w), torch.zeros(3, 5)
    for step in range(10):
        state = method.prepare(w, state, now, DRAW)
        w = w.detach().requires_grad_()
        loss = (w - a).square().sum() / 2 + method.penalty(w, state, now)
        (g,) = torch.autograd.grad(loss, w)
        w, state = method.update(w.detach(), w.detach() - rate * g, state, now, DRAW)
        if step and step % every == 0:
            z = project(theirs + u)
            u = u + theirs - z
        theirs = theirs - rate * (theirs - a + rho * (theirs - z + u))
        torch.testing.assert_close(w, theirs, rtol=0, atol=1e-12)
        torch.testing.assert_close(state["projection"], z, rtol=0, atol=1e-12)
        torch.testing.assert_close(state["dual"], rho * u, rtol=0, atol=1e-12)
        assert residual(w, state).item() == pytest.approx(float((theirs - z).norm() / theirs.norm()))
    assert state["dual"].abs().max() > 0


def test_a_rho_that_changes_leaves_the_pull_of_the_dual_as_it_is() -> None:
    """The gradient of the penalty is rho (W - Z) + Y, Boyd et al., section 3.4.1: U = Y / rho is scaled anew."""
    method = built(projection_every=1)
    w, state = start(method, torch.randn(4, 6))
    for _ in range(3):
        state = method.prepare(w, state, controls(0.1), DRAW)
    w.requires_grad_()
    for rho in (0.1, 0.9):
        (g,) = torch.autograd.grad(method.penalty(w, state, controls(rho)), w)
        torch.testing.assert_close(g, rho * (w - state["projection"]) + state["dual"])


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_weights_on_their_levels_are_not_pulled_and_their_scale_stays(constraint: str) -> None:
    method = built(constraint=constraint, levels="int4", projection_every=1, **sparse(constraint, 0.5))
    w, state = start(method, torch.randn(4, 6))
    state = method.prepare(w, state, controls(), DRAW)
    after = method.prepare(2 * w, state, controls(blend=1.0), DRAW)
    assert all(torch.equal(after[key], state[key]) for key in ("projection", "dual", "scale"))
    assert method.penalty(2 * w, after, controls(blend=1.0)).item() == 0
    seen = method.weight(w, after, controls(blend=1.0), DRAW)
    ste = method.quantizer.harden(w, after, 0.5)
    assert torch.equal(seen, ste * (1 - after["pruned"]) if constraint != "quantize" else ste)
    moved, _ = method.update(w, w + 1, after, controls(blend=1.0), DRAW)
    stays = after["pruned"] if constraint != "quantize" else torch.zeros_like(w)
    assert torch.equal(moved, torch.where(stays == 1, w, w + 1))


def test_float_weights_are_seen_as_they_are_and_move_freely() -> None:
    method = built(projection_every=1)
    w, state = start(method, torch.randn(4, 6))
    state = method.prepare(w, state, controls(), DRAW)
    assert torch.equal(method.weight(w, state, controls(), DRAW), w)
    assert torch.equal(method.update(w, w + 1, state, controls(), DRAW)[0], w + 1)


def test_the_number_of_zeros_is_exact_at_ties_and_follows_the_control() -> None:
    method = built(constraint="prune", levels="int4", sparsity=0.5, projection_every=1)
    w, state = start(method, torch.ones(8, 10), sparsity=0.6)
    state = method.prepare(w, state, controls(sparsity=0.6), DRAW)
    assert int((state["projection"] == 0).sum()) == 24
    state = method.prepare(w, state, controls(sparsity=0.9), DRAW)
    assert int((state["projection"] == 0).sum()) == int(state["pruned"].sum()) == 36


def test_the_scale_is_fitted_to_the_weights_that_are_kept() -> None:
    method = built(levels="ternary", scale="least_squares", sparsity=0.75, projection_every=1)
    w = torch.tensor([[4.0, -4.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]])
    w, state = start(method, w)
    for _ in range(2):
        state = method.prepare(w, state, controls(rho=10.0), DRAW)
    assert state["scale"].item() == pytest.approx(4.0, rel=0.03)
    assert (state["projection"] == 0).sum() == 6


def test_the_derivative_in_rho_passes_projections_and_duals() -> None:
    """Central differences of a loss after eight steps with three projections, at a rho of each step."""
    method = built(constraint="prune", levels="int4", sparsity=0.5, projection_every=2)
    a, first = torch.randn(3, 4), torch.randn(3, 4)

    def loss_of(rhos: torch.Tensor) -> torch.Tensor:
        w, state = start(method, first)
        for rho in rhos:
            now = {**controls(), "rho": rho}
            state = method.prepare(w, state, now, DRAW)
            gradient = w - a + rho * (w - state["projection"]) + state["dual"]
            w, state = method.update(w, w - 0.2 * gradient, state, now, DRAW)
        return (w - 0.3).square().sum()

    rhos = (0.2 + 0.1 * torch.arange(8)).requires_grad_()
    (found,) = torch.autograd.grad(loss_of(rhos), rhos)
    with torch.no_grad():
        steps = 1e-5 * torch.eye(8)
        differences = torch.stack([(loss_of(rhos + h) - loss_of(rhos - h)) / 2e-5 for h in steps])
    torch.testing.assert_close(found, differences, rtol=1e-7, atol=1e-9)
    assert found.abs().min() > 0


def test_what_is_impossible_is_refused_in_one_line() -> None:
    with pytest.raises(MetaschedError, match=r"^method.levels: is binary, which has no 0 .*constraint to quantize$"):
        build_method(MethodConfig(name="admm", levels="binary"))
    build_method(MethodConfig(name="admm", levels="binary", constraint="quantize"))
    for wrong, expected in (
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": 0.5, "constraint": "quantize"}, "has no effect, because method.constraint is quantize"),
        ({"constraint": "sparse"}, "constraint"),
        ({"projection_every": 0}, "projection_every"),
    ):
        with pytest.raises(ValueError, match=expected):
            MethodConfig(name="admm", **wrong)
