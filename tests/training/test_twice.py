"""Batch normalization with closed forms for derivatives of gradients: against torch's own, and where it stands in."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from metasched.training import twice
from metasched.training.twice import twice_differentiable
from metasched.training.twice_norm import batch_norm

SHAPES = pytest.mark.parametrize("shape", [(5, 3), (3, 2, 4), (2, 3, 2, 2)], ids=str)


def given(shape: tuple[int, ...]) -> list[torch.Tensor]:
    x, weight, bias = torch.randn(shape), torch.randn(shape[1]), torch.randn(shape[1])
    weight[0] = 0  # which a closed form must not divide by
    return [t.requires_grad_() for t in (x, weight, bias)]


@SHAPES
def test_second_derivatives_against_finite_differences(shape: tuple[int, ...]) -> None:
    def function(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return batch_norm(x, weight, bias, None, None, 0.1, 1e-2)

    assert torch.autograd.gradgradcheck(function, given(shape))


@SHAPES
@pytest.mark.parametrize("differentiated", [(0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)], ids=str)
def test_any_of_the_gradients_may_be_differentiated(shape: tuple[int, ...], differentiated: tuple[int, ...]) -> None:
    leaves, g, draws = given(shape), torch.randn(shape), torch.Generator()
    found: list[list[torch.Tensor]] = []
    for closed in (True, False):
        draws.manual_seed(1)
        x, weight, bias = leaves
        y = (
            batch_norm(x, weight, bias, None, None, 0.1, 1e-5)
            if closed
            else F.batch_norm(x, None, None, weight, bias, True)
        )
        first = torch.autograd.grad((y * g).sum() + y.square().sum(), leaves, create_graph=True)
        terms = [(first[i] * torch.randn(first[i].shape, generator=draws)).sum() for i in differentiated]
        found.append([y, *first, *torch.autograd.grad(torch.stack(terms).sum(), leaves, materialize_grads=True)])
    for i, (a, b) in enumerate(zip(*found, strict=True)):
        assert torch.equal(a, b) if i < 4 else torch.allclose(a, b, rtol=1e-11, atol=1e-11)


def counted(module: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many closed forms are in a pass."""
    calls: list[None] = []
    monkeypatch.setattr(twice, "batch_norm", lambda *args: calls.append(None) or batch_norm(*args))
    with twice_differentiable(module):
        module(x)
    return len(calls)


def test_a_module_is_as_it_was_but_within(monkeypatch: pytest.MonkeyPatch) -> None:
    made, same = (nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.ReLU()) for _ in range(2))
    same.load_state_dict(made.state_dict())
    x = torch.randn(4, 2, 5)
    assert counted(made, x, monkeypatch) == 1
    same(x)
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), same.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="2D or 3D"), twice_differentiable(made):
        made[1](torch.randn(2, 3, 2, 2))
    assert "forward" not in made[1].__dict__
    assert made[1](torch.randn(4, 3)).grad_fn.name() == "NativeBatchNormBackward0"  # pyright: ignore


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(2).eval(),
        nn.BatchNorm1d(2, affine=False),
        nn.BatchNorm1d(2, momentum=None),
        nn.LayerNorm(2),
        type("Own", (nn.BatchNorm1d,), {"forward": lambda self, x: x})(2),
    ],
    ids=["eval", "no parameters", "mean of all batches", "layer", "own forward"],
)
def test_what_stays_as_it_is(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counted(module, torch.randn(4, 2), monkeypatch) == 0


def test_passes_without_closed_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, x = nn.BatchNorm1d(2), torch.randn(4, 2)
    with torch.no_grad():
        assert counted(norm, x, monkeypatch) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert counted(norm.float(), x.float(), monkeypatch) == 0
    norm = nn.BatchNorm1d(2)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.norm, x, use_reentrant=False)  # pyright: ignore

    assert counted(Checkpointed(), x.requires_grad_(), monkeypatch) == 0
