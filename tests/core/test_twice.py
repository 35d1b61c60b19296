"""What closed forms share: where they may be used, and derivatives of them."""

from __future__ import annotations

from typing import Any

import torch

from metasched.core import twice


def test_it_is_for_reverse_mode_alone() -> None:
    assert twice.closed()
    with torch.no_grad():
        assert not twice.closed()
    with torch.autograd.forward_ad.dual_level():
        assert not twice.closed()
    seen: list[bool] = []
    torch.func.vmap(lambda x: seen.append(twice.closed()) or x)(torch.zeros(2))
    assert seen == [False]


class Seeing(torch.autograd.Function):
    seen: list[bool]

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # pyright: ignore
        Seeing.seen = [twice.wanted(ctx, 0), twice.wanted(ctx, 1)]
        return g, g


def test_inputs_that_a_backward_pass_does_not_go_on_to() -> None:
    x, y = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    torch.autograd.grad(Seeing.apply(2 * x, 2 * y).sum(), x)  # pyright: ignore
    assert Seeing.seen == [True, False]
    Seeing.apply(2 * x, 2 * y).sum().backward()  # pyright: ignore
    assert Seeing.seen == [True, True]
    Seeing.apply(2 * x, y.detach()).sum().backward()  # pyright: ignore
    assert Seeing.seen == [True, False]


def test_differentiable_keeps_a_graph_where_one_is_kept() -> None:
    x, y = torch.tensor(3.0, requires_grad=True), torch.tensor(5.0)

    def gradients(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        return [x**3 * y, x.detach()]

    for kept in (True, False):
        with torch.set_grad_enabled(kept):
            of_x, of_y = twice.differentiable(gradients, [x, y], [True, False], [torch.tensor(2.0), torch.tensor(1.0)])
        assert of_x is not None and of_x.item() == 270 and of_x.requires_grad == kept and of_y is None
    assert twice.differentiable(gradients, [x, y], [True, True], [None, torch.tensor(1.0)]) == [None, None]


def test_inputs_that_depend_on_each_other_are_apart() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    y = x * x
    for kept in (True, False):
        with torch.set_grad_enabled(kept):
            found = twice.differentiable(lambda x, y: [x * x * y * y], [x, y], [True, True], [torch.tensor(1.0)])
        assert [t.item() for t in found if t is not None] == [2 * 3 * 81, 2 * 9 * 9]
    with torch.enable_grad():
        (of_x, _) = twice.differentiable(lambda x, y: [x * x * y * y], [x, y], [True, True], [torch.tensor(1.0)])
    assert of_x is not None
    assert torch.autograd.grad(of_x, x)[0].item() == 10 * 3**4  # of 2 x^5
