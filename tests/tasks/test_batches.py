"""Batches are a function of (seed, step), and an epoch has each example at most once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from metasched.tasks.supervised import Split, SupervisedTask

seeds = st.integers(0, 2**32)


def numbered(n: int, batch_size: int) -> SupervisedTask:
    """A task whose i-th training example is i."""
    part = Split(torch.arange(n)[:, None].double(), torch.arange(n))
    return SupervisedTask("numbered", part, part, part, nn.Identity, F.mse_loss, F.mse_loss, batch_size)


def epoch(task: SupervisedTask, seed: int, number: int) -> list[int]:
    per_epoch = len(task.train.x) // task.batch_size
    return torch.cat([task.batch(seed, number * per_epoch + i).y for i in range(per_epoch)]).tolist()


@given(st.integers(1, 12), st.integers(1, 6), seeds, st.integers(0, 5))
def test_an_epoch_covers_the_training_set_once(batch_size: int, per_epoch: int, seed: int, number: int):
    n = batch_size * per_epoch
    assert sorted(epoch(numbered(n, batch_size), seed, number)) == list(range(n))


@given(st.integers(1, 60), st.data(), seeds)
def test_what_does_not_fill_a_batch_is_left_out_of_that_epoch(n: int, data: st.DataObject, seed: int):
    batch_size = data.draw(st.integers(1, n))
    seen = epoch(numbered(n, batch_size), seed, 0)
    assert len(seen) == len(set(seen)) == n - n % batch_size


@given(seeds, st.integers(0, 1000))
def test_a_batch_depends_on_nothing_but_seed_and_step(seed: int, step: int):
    task = numbered(20, 4)
    first = task.batch(seed, step)
    torch.rand(3)  # the global generator plays no part
    task.batch(seed + 1, step)
    second = numbered(20, 4).batch(seed, step)
    assert torch.equal(first.x, second.x) and torch.equal(first.y, second.y)
    assert torch.equal(first.x[:, 0], first.y.double())  # inputs stay with their targets


def test_epochs_and_seeds_differ():
    task = numbered(100, 10)
    assert len({tuple(epoch(task, seed, number)) for seed in range(5) for number in range(5)}) == 25


def test_moving_a_task_keeps_integer_targets():
    moved = numbered(6, 2).to("cpu", torch.float32)
    assert moved.train.x.dtype == torch.float32 and moved.train.y.dtype == torch.int64
