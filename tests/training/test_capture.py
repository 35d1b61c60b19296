"""Recording and replaying operations on the CPU, and what a recording refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from metasched.training.capture import NotRecordable, RefusingHost, cuda_graph, operations


def test_a_replay_computes_with_what_is_in_the_tensors_now() -> None:
    x, w, total = torch.ones(3), torch.tensor([1.0, 2.0, 3.0]), torch.zeros(())
    mean, var, found = torch.zeros(3), torch.ones(3), []

    def step() -> None:
        leaf = w.detach().requires_grad_()
        loss = (leaf.view(1, 3) * x).square().sum()  # through a view
        (slope,) = torch.autograd.grad(loss, leaf)
        F.batch_norm(torch.stack([x, w]), mean, var, training=True)  # changes mean and variance
        with torch.no_grad():
            w.sub_(0.1 * slope)
            total.add_(loss)
        found[:] = [slope]

    again = operations(step)
    for value in (0.5, -2.0, 3.0):
        before, at = w.clone(), total.clone()
        gathered = mean * 0.9 + 0.1 * (value + before) / 2
        x.fill_(value)
        again()
        torch.testing.assert_close(found[0], 2 * before * value**2)
        torch.testing.assert_close(w, before - 0.2 * before * value**2)
        torch.testing.assert_close(total, at + (before * value).square().sum())
        torch.testing.assert_close(mean, gathered)


def test_what_was_read_on_the_host_stays_what_it_was() -> None:
    """So a step that reads values gives wrong numbers when it is replayed on the CPU, too."""
    x, y = torch.tensor(2.0), torch.zeros(())
    again = operations(lambda: y.copy_(x * float(x)))
    assert float(y) == 4
    x.fill_(3.0)
    again()
    assert float(y) == 6


REFUSED: dict[str, Callable[[torch.Tensor], object]] = {
    "reads a value": lambda x: float(x.sum()),
    "reads a value, too": lambda x: bool((x > 0).any()),
    "has a shape that depends on values": lambda x: x[x > 0],
    "has a shape": lambda x: (x > 0).nonzero(),
    "makes a tensor of numbers": lambda x: torch.tensor([1.0, 2.0]),
    "draws from a generator": lambda x: torch.rand(3),
    "copies to another device": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_a_recording_cannot_repeat_is_refused(why: str) -> None:
    with pytest.raises(NotRecordable, match=why.partition(",")[0]), RefusingHost():
        REFUSED[why](torch.arange(3.0))


def test_what_it_can_repeat_is_not() -> None:
    x, order = torch.arange(3.0), torch.tensor([2, 0, 1])
    with RefusingHost():
        y = torch.where(x > 0, x[order], 1.0).argsort(stable=True)
        assert y.shape == (3,)


@pytest.mark.gpu
def test_a_cuda_graph_computes_with_what_is_in_the_tensors_now() -> None:
    x, w = torch.ones(3, device="cuda"), torch.ones(3, device="cuda")
    again = cuda_graph(lambda: w.mul_(x))
    w.fill_(1)
    for value in (2.0, 3.0):
        x.fill_(value)
        again()
    assert w.tolist() == [6, 6, 6]
