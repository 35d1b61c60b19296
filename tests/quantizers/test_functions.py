"""One function of autograd, called in each of its ways: plain, with forward derivatives, by torch.func, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from metasched.engines.tangent import tangents
from metasched.quantizers.functions import caller
from metasched.quantizers.levels import ternary
from metasched.quantizers.stair import stair
from metasched.quantizers.straight import straight_through
from metasched.quantizers.surrogate import hard_with_width


class _Cube(torch.autograd.Function):
    """x^3, and three times its derivative, so that autograd's own would be found out."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, times: float) -> torch.Tensor:
        return times * x.detach() ** 3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, ctx.times = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return 9 * ctx.times * x * x * tangents[0]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return grad * 9 * ctx.times * x * x, None


cube = caller(_Cube)
LEVELS = ternary()  # torch.compile makes none


def test_each_way_has_the_functions_value_and_derivatives() -> None:
    x = torch.tensor([0.5, -2.0], requires_grad=True)
    y = cube(x, 2.0)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(y, 2 * x**3)
    assert torch.equal(first, 18 * x * x)
    assert torch.equal(second, 36 * x)
    with tangents():
        dual = forward_ad.make_dual(x.detach(), torch.tensor([1.0, 3.0]))
        tangent = forward_ad.unpack_dual(cube(dual, 2.0)).tangent
    assert torch.equal(tangent, 18 * x * x * torch.tensor([1.0, 3.0]))
    assert torch.equal(torch.func.grad(lambda x: cube(x, 2.0).sum())(x.detach()), first)
    assert torch.equal(torch.vmap(lambda x: cube(x, 2.0))(x.detach()), y)


@pytest.mark.parametrize(
    "quantized",
    [
        lambda x: straight_through(x, LEVELS, 0.5),
        lambda x: hard_with_width(x, LEVELS, torch.tensor(0.8), "triangular"),
    ],
    ids=["straight_through", "hard_with_width"],
)
def test_quantizers_are_compiled_into_one_graph(quantized: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.tensor([-1.2, -0.3, 0.6, 1.4])
    compiled: Any = torch.compile(quantized, backend="aot_eager", fullgraph=True)
    for function in (quantized, compiled):
        leaf = x.clone().requires_grad_()
        function(leaf).sum().backward()
        assert torch.equal(function(leaf), quantized(x))
        eager = x.clone().requires_grad_()
        quantized(eager).sum().backward()
        assert leaf.grad is not None
        assert eager.grad is not None
        torch.testing.assert_close(leaf.grad, eager.grad, rtol=1e-12, atol=0)


def test_the_stair_is_mapped_by_its_own_rule() -> None:
    x, scales = torch.linspace(-2, 2, 7), torch.tensor([0.0, 0.4])

    def noisy(scale: torch.Tensor) -> torch.Tensor:
        return stair(x, ternary(), mean=torch.tensor(0.1), scale=scale, family="normal", forward="expectation")

    torch.testing.assert_close(torch.vmap(noisy)(scales), torch.stack([noisy(s) for s in scales]))
