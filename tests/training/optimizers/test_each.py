"""Operations on lists of tensors have the bits of the operation on each, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from metasched.training.optimizers import each

SHAPES = ((3, 2), (), (5,))
OPERATIONS: dict[str, Callable[..., list[torch.Tensor]]] = {
    "plus": each.plus,
    "lerp": lambda xs, a, ys: each.lerp(xs, ys, a),
    "squares": lambda xs, a, ys: each.squares(xs),
    "roots": lambda xs, a, ys: each.roots(each.squares(xs), a),
    "plus_ratios": lambda xs, a, ys: each.plus_ratios(xs, a, ys, each.roots(each.squares(xs), 0.5)),
}
ALONE: dict[str, Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]] = {
    "plus": lambda x, a, y: torch.add(x, y, alpha=a),
    "lerp": lambda x, a, y: torch.lerp(x, y, a),
    "squares": lambda x, a, y: x * x,
    "roots": lambda x, a, y: (x * x).clamp_min(torch.finfo(x.dtype).tiny).sqrt() + a,
    "plus_ratios": lambda x, a, y: torch.addcdiv(
        x, y, (x * x).clamp_min(torch.finfo(x.dtype).tiny).sqrt() + 0.5, value=a
    ),
}


def tensors(seed: int) -> list[torch.Tensor]:
    """Of several shapes."""
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draws).requires_grad_() for shape in SHAPES]


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_bits_and_derivatives_are_those_of_the_operation_on_each(name: str) -> None:
    xs, ys = tensors(0), tensors(1)
    with torch.no_grad():
        at_once = OPERATIONS[name](xs, 0.3, ys)
    found = OPERATIONS[name](xs, 0.3, ys)
    expected = [ALONE[name](x, 0.3, y) for x, y in zip(xs, ys, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(at_once, expected, strict=True))
    ours = torch.autograd.grad([t.square().sum() for t in found], xs, create_graph=True)
    theirs = torch.autograd.grad([t.square().sum() for t in expected], xs, create_graph=True)
    seconds = [torch.autograd.grad([g.square().sum() for g in gs], xs, allow_unused=True) for gs in (ours, theirs)]
    for a, b in [*zip(ours, theirs, strict=True), *zip(*seconds, strict=True)]:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_number_may_be_a_tensor_with_a_derivative_also_at_zero(name: str) -> None:
    xs, ys = tensors(0), tensors(1)
    for value in (0.0, 0.3):
        a = torch.tensor(value, requires_grad=True)
        found = OPERATIONS[name](xs, a, ys)
        for t, x, y in zip(found, xs, ys, strict=True):
            torch.testing.assert_close(t, ALONE[name](x, value, y), rtol=1e-12, atol=1e-12)
        if name not in ("squares",):
            (slope,) = torch.autograd.grad([t.sum() for t in found], a)
            h = 1e-6
            ahead, behind = (
                sum(ALONE[name](x, value + s, y).sum() for x, y in zip(xs, ys, strict=True)) for s in (h, -h)
            )
            torch.testing.assert_close(slope, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPERATIONS)
def test_they_are_mapped_over_runs(name: str) -> None:
    xs = [torch.stack([x.detach(), 2 * x.detach()]) for x in tensors(0)]
    ys = [torch.stack([y.detach(), y.detach()]) for y in tensors(1)]
    mapped = torch.vmap(lambda xs, ys: OPERATIONS[name](xs, 0.3, ys))(xs, ys)
    for run in (0, 1):
        alone = OPERATIONS[name]([x[run] for x in xs], 0.3, [y[run] for y in ys])
        assert all(torch.equal(m[run], t) for m, t in zip(mapped, alone, strict=True))


@torch.no_grad()
def test_no_tensors_are_no_tensors() -> None:
    assert [each.plus([], 0.1, []), each.lerp([], [], 0.1), each.squares([]), each.roots([], 0.1)] == [[]] * 4


def test_the_derivative_of_a_root_at_zero_is_zero() -> None:
    x = torch.zeros(2, requires_grad=True)
    (root,) = each.roots([x], 1e-8)
    assert torch.autograd.grad(root.sum(), x)[0].tolist() == [0.0, 0.0]
