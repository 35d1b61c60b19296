"""Whole inner runs, and the score of the deployed network with its own batch normalization."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.quantize import quantize
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded
from metasched.tasks.classification import accuracy
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.loop import InnerRun, hardened_score, train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3), nn.BatchNorm1d(3))


def problem(method: str = "joint", steps: int = 12, examples: int = 90, seed: int = 2) -> InnerProblem:
    draws = torch.Generator().manual_seed(5)
    y = torch.arange(examples) % 3
    part = Split(torch.randn(examples, 6, generator=draws) + 2 * F.one_hot(y, 6), y)
    task = SupervisedTask("blobs", part, part, part, build, F.cross_entropy, accuracy, batch_size=16)
    network = quantize(build(), build_method(MethodConfig(name=method)), part.x[:2], last=True)  # pyright: ignore
    optimizer, hyper = recipe(OptimizerConfig(name="adam", lr=0.03))
    return InnerProblem(network, task, optimizer, hyper, steps, seed)


def play(inner: InnerProblem) -> InnerRun:
    family = {"freeze_fraction": "joint_linear", "weight_noise": "ana_linear"}
    names = {c.name for c in inner.network.method.controls}
    name = next(family[key] for key in family if key in names)
    schedule = hand_coded(name.split("_")[0])[name]
    return train(inner, schedule(progress_of_steps(inner.steps), inner.network.layers))


def equal(a: InnerRun, b: InnerRun) -> bool:
    return torch.equal(a.losses, b.losses) and all(
        torch.equal(t, other[key]) for part, other in zip(a.state, b.state, strict=True) for key, t in part.items()
    )


@pytest.mark.parametrize("method", ["ana", "joint"])
def test_the_same_seed_gives_the_same_bits(method: str) -> None:
    first = play(problem(method))
    torch.manual_seed(99)
    torch.rand(7)
    assert equal(first, play(problem(method)))
    assert not equal(first, play(problem(method, seed=3)))


def test_training_learns() -> None:
    inner = problem("ana", steps=150)
    run = play(inner)
    assert run.losses.shape == (150,) and not run.losses.requires_grad
    assert run.losses[-20:].mean() < 0.7 * run.losses[:5].mean()
    assert hardened_score(inner, run.state, "test") > 0.8  # a third by chance


def test_a_run_of_one_step_is_at_its_end() -> None:
    inner = problem("joint", steps=1)
    run = play(inner)
    assert run.losses.shape == (1,) and bool(run.losses.isfinite())
    for layer in inner.network.layers:
        assert bool((run.state.method[f"{layer.name}/frozen"] == 1).all())
        initial = inner.initial(inner.network.neutral()).params
        assert torch.equal(run.state.params[f"{layer.name}.weight"], initial[f"{layer.name}.weight"])
    assert 0 <= hardened_score(inner, run.state, "test") <= 1


def normalized(x: torch.Tensor, like: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Batch normalization of x by the statistics of ``like``."""
    return (x - like.mean(0)) / (like.var(0) + 1e-5).sqrt() * weight + bias


def hard_ternary(x: torch.Tensor) -> torch.Tensor:
    return (x >= 0.5).double() - (x < -0.5).double()


def test_the_deployed_network_is_normalized_by_its_own_statistics() -> None:
    inner = problem("ana")
    run = play(inner)
    p = run.state.params
    w0, w1 = hard_ternary(p["0.weight"]), hard_ternary(p["3.weight"])

    def scores(x: torch.Tensor, train_x: torch.Tensor) -> torch.Tensor:
        pre, pre_train = (F.linear(v, w0, p["0.bias"]) for v in (x, train_x))
        # what the second normalization gathers comes out of the first one in training mode, whose variance is biased
        spread = (pre_train.var(0, correction=0) + 1e-5).sqrt()
        hidden_train = hard_ternary((pre_train - pre_train.mean(0)) / spread * p["1.weight"] + p["1.bias"])
        hidden = hard_ternary(normalized(pre, pre_train, p["1.weight"], p["1.bias"]))
        out, out_train = (F.linear(v, w1, p["3.bias"]) for v in (hidden, hidden_train))
        return normalized(out, out_train, p["4.weight"], p["4.bias"])

    draws = torch.Generator().manual_seed(8)
    y = torch.randint(3, (64,), generator=draws)
    fresh = Split(torch.randn(64, 6, generator=draws) + F.one_hot(y, 6), y)
    expected = scores(fresh.x, inner.task.train.x)
    inner = replace(inner, task=replace(inner.task, test=fresh))
    assert hardened_score(inner, run.state, "test") == accuracy(expected, y).item()
    # and by all outputs, not by their accuracy alone
    total = replace(inner.task, metric=lambda outputs, y: (outputs * torch.arange(1.0, 4.0)).sum())
    summed = replace(inner, task=total)
    assert hardened_score(summed, run.state, "test") == pytest.approx(
        (expected * torch.arange(1.0, 4.0)).sum().item(), rel=1e-9
    )


def test_scoring_leaves_no_trace() -> None:
    inner = problem()
    run = play(inner)
    before = [{key: t.clone() for key, t in part.items()} for part in run.state]
    norm = inner.network.module.get_submodule("1")
    first = hardened_score(inner, run.state, "validation")
    assert norm.momentum == 0.1 and inner.network.module.training
    assert hardened_score(inner, run.state, "validation") == first
    for part, kept in zip(run.state, before, strict=True):
        assert all(torch.equal(t, kept[key]) for key, t in part.items())


@pytest.mark.parametrize("examples", [1001, 1003, 2001])
def test_statistics_weigh_all_training_examples_alike(examples: int) -> None:
    """A last part of one example cannot be normalized, and one of few would count as much as a thousand."""
    inner = problem("ana", steps=2, examples=examples)
    train = inner.task.train
    outlier = train.x.clone()
    outlier[-1] += 1000.0
    shifted = SupervisedTask(
        "shifted",
        Split(outlier, train.y),
        train,
        train,
        build,
        F.cross_entropy,
        lambda outputs, y: outputs.square().mean(),
        16,
    )
    run = play(inner)
    inner = InnerProblem(inner.network, shifted, inner.optimizer, inner.hyper, inner.steps, inner.seed)
    p = run.state.params
    pre = F.linear(outlier, hard_ternary(p["0.weight"]), p["0.bias"])
    means: list[torch.Tensor] = []
    norm = inner.network.module.get_submodule("1")
    hook = norm.register_forward_hook(lambda m, _in, _out: means.append(m.get_buffer("running_mean").clone()))
    hardened_score(inner, run.state, "test")
    hook.remove()
    assert torch.allclose(means[-1], pre.mean(0), atol=0.02)
