"""A step of Adam with its derivative in closed form."""

from __future__ import annotations

import pytest
import torch

from metasched.training.optimizers import twice_adam
from metasched.training.optimizers.twice_adam import Numbers, step

NUMBERS = Numbers(0.1, 0.01, -0.3, 1e-3)


def given() -> list[torch.Tensor]:
    shapes = [(3, 2), (), (4,)]
    lists = [[torch.randn(shape) for shape in shapes] for _ in range(4)]
    return [t.requires_grad_() for t in (*lists[0], *lists[1], *lists[2], *(v.abs() + 0.1 for v in lists[3]))]


def stepped(*given: torch.Tensor, numbers: Numbers = NUMBERS) -> list[torch.Tensor]:
    n = len(given) // 4
    found = step(*(given[i * n : (i + 1) * n] for i in range(4)), numbers)  # pyright: ignore[reportCallIssue]
    return [t for part in found for t in part]


def test_against_finite_differences() -> None:
    assert "_Step" in stepped(*given())[0].grad_fn.name()  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.autograd.gradcheck(lambda *t: tuple(stepped(*t)), given())
    assert torch.autograd.gradgradcheck(lambda *t: tuple(stepped(*t)), given()[::3])


def test_values_have_the_bits_of_a_step_without_a_graph() -> None:
    inputs = given()
    with torch.no_grad():
        plain = stepped(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(stepped(*inputs), plain, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_where_nothing_has_moved_yet_it_is_finite(dtype: torch.dtype) -> None:
    inputs = [torch.tensor([0.0, 1e-30], dtype=dtype, requires_grad=True) for _ in range(4)]
    found = torch.autograd.grad([t.sum() for t in stepped(*inputs)], inputs)
    expected = torch.autograd.grad([t.sum() for t in twice_adam._step(NUMBERS, *inputs)], inputs)
    for a, b in zip(found, expected, strict=True):
        assert bool(a.isfinite().all()) and torch.allclose(a, b, rtol=1e-5)


def test_hyper_parameters_that_need_a_derivative_and_mixed_dtypes_take_single_operations() -> None:
    size = torch.tensor(-0.3, requires_grad=True)
    assert "_Step" not in stepped(*given(), numbers=NUMBERS._replace(size=size))[0].grad_fn.name()  # pyright: ignore
    mixed = given()
    mixed[0] = mixed[0].detach().float().requires_grad_()
    assert "_Step" not in stepped(*(t.float() if i % 3 == 0 else t for i, t in enumerate(mixed)))[0].grad_fn.name()  # pyright: ignore
