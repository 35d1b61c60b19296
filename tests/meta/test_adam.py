"""Adam of the outer loop: the bits of torch.optim.Adam."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from metasched.meta.adam import QUANTITIES, Adam


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_of_torch(dtype: torch.dtype) -> None:
    """Parameters and all that is kept, over several steps; a copy goes on alone."""
    torch.set_default_dtype(dtype)
    ours = [nn.Parameter(torch.randn(shape)) for shape in ((3, 2), (), (5,))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizer, reference = Adam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    assert optimizer.state == {}
    for step in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p) * 10.0 ** (step - 2)
            q.grad = p.grad.clone()
        moved, copied = copy.deepcopy((ours, optimizer))
        optimizer.step()
        reference.step()
        assert not any(torch.equal(p, q) for p, q in zip(moved, ours, strict=True))
        for p, r in zip(ours, moved, strict=True):
            r.grad = p.grad  # which a copy does not hold
        copied.step()
        for p, q, r in zip(ours, theirs, moved, strict=True):
            assert torch.equal(p, q) and torch.equal(p, r)
            for name in QUANTITIES:
                kept = optimizer.state[p][name]
                assert torch.equal(kept, reference.state[q][name]) and kept.dtype == reference.state[q][name].dtype
                assert torch.equal(kept, copied.state[r][name])


def test_each_parameter_needs_a_gradient() -> None:
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(AssertionError, match="without a gradient"):
        Adam([p], lr=0.1).step()
