"""Rounding problems: the loss is that of the rounded layer, each seed has a layer of its own, the copy stands still."""

from __future__ import annotations

import pytest
import torch

from metasched.core.errors import MetaschedError
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.quantize import quantize
from metasched.tasks.config import TaskConfig
from metasched.tasks.rounding import CHANNELS, rounding_task
from metasched.training.loop import hardened_score, train
from metasched.training.optimizers.adam import Adam
from metasched.training.state import InnerProblem

HYPER = {"lr": 0.03, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}


def problem(seed: int, method: str = "adaround") -> InnerProblem:
    task = rounding_task(TaskConfig(name="rounding", width=6, train=64)).to("cpu", torch.float64)
    config = MethodConfig(
        name=method, levels="int3", scale="least_squares", granularity="channel", activation_levels=None
    )
    network = quantize(task.build().double(), build_method(config), task.train.x[:2], last=True)
    return InnerProblem(network, task, Adam(), HYPER, steps=5, seed=seed)


def test_loss_and_score_are_those_of_the_rounded_layer() -> None:
    p = problem(3)
    state = p.initial({})
    w, hard = state.params["layer.weight"], p.network.harden(state.params, state.method)["layer.weight"]
    assert torch.equal(w, state.params["target"])
    x = p.task.test.x  # pyright: ignore[reportAttributeAccessIssue]
    wrong = (x @ (hard - w).mT).square()
    power = p.task.train.x.square().sum(1).mean()  # pyright: ignore[reportAttributeAccessIssue]
    assert hardened_score(p, state, "test") == pytest.approx(float(1 - wrong.mean() / power))
    model = p.network.hardened_model(p.network.call({}), state.params, state.method)
    batch = p.task.test  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(p.task.loss(model, batch), wrong.sum(1).mean())


def test_each_seed_is_another_layer_and_the_copy_stands_still() -> None:
    rows = {"rounding_beta": torch.full((5, 1), 4.0), "rounding_penalty": torch.full((5, 1), 0.1)}
    ends = [train(problem(seed), rows).state.params for seed in (0, 1)]
    assert not torch.equal(ends[0]["target"], ends[1]["target"])
    for seed, end in enumerate(ends):
        start = problem(seed).initial({}).params
        assert torch.equal(end["target"], start["target"]) and torch.equal(end["layer.weight"], start["layer.weight"])
        assert not torch.equal(end["layer/rounding"], start["layer/rounding"])


def test_sizes() -> None:
    task = rounding_task(TaskConfig(name="rounding", width=4, train=8, validation=5, test=3, batch=100))
    assert task.batch_size == 8 and task.validation.x.shape == (5, 4) and task.test.y.shape == (3, CHANNELS)
    with pytest.raises(MetaschedError, match=r"task\.width: is 1"):
        rounding_task(TaskConfig(name="rounding", width=1))
