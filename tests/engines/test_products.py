"""Vector-Jacobian products: the bits of torch.autograd.grad."""

from __future__ import annotations

import pytest
import torch

from metasched.engines.products import vector_jacobian


def graph() -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Outputs that share parts of their graph, inputs of which the last is not used, and seeds."""
    draw = torch.Generator().manual_seed(3)
    x, w, unused = (torch.randn(n, 4, generator=draw, requires_grad=True) for n in (3, 4, 2))
    y = torch.tanh(x @ w)
    outputs = [y, (y * x).sum(), torch.softmax(y @ w, 1)[0], x]
    return outputs, [x, w, unused], [torch.randn(o.shape, generator=draw) for o in outputs]


@pytest.mark.parametrize("grad_mode", [True, False])
def test_the_bits_of_torch(grad_mode: bool) -> None:
    """Also without grad mode, as on the way back of another graph."""
    outputs, inputs, seeds = graph()
    expected = torch.autograd.grad(outputs, inputs, seeds, allow_unused=True, retain_graph=True)
    with torch.set_grad_enabled(grad_mode):
        found = vector_jacobian(outputs, inputs, seeds)
    assert found[2] is None and expected[2] is None
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert ours is not None and torch.equal(ours, theirs) and not ours.requires_grad


def test_the_graph_is_freed_unless_it_is_kept() -> None:
    outputs, inputs, seeds = graph()
    first = vector_jacobian(outputs, inputs, seeds, retain_graph=True)
    second = vector_jacobian(outputs, inputs, seeds)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="second time"):
        vector_jacobian(outputs, inputs, seeds)


def test_a_seed_of_another_shape_is_a_mistake() -> None:
    outputs, inputs, seeds = graph()
    with pytest.raises(AssertionError):
        vector_jacobian(outputs, inputs, [seeds[0].T, *seeds[1:]])
