from __future__ import annotations

import math

import pytest
import torch

from metasched.core.features import FEATURES, bounded
from metasched.core.layer import Layer
from metasched.methods.base import Control
from metasched.schedules.base import progress_of_steps
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.learnable import build_learnable
from metasched.schedules.shared import SharedSchedule

LAYERS = [Layer(f"l{i}", i / 3, "conv", "weight+activation", 9, 90, 1.585) for i in range(4)]
CONTROL = Control("width", 0.25, 4.0, "one", "free", end=None, scale="log")
TASK = {"horizon": 2.7, "rate": -1.5}


def base(progress: torch.Tensor, layers: object) -> dict[str, torch.Tensor]:
    return {"width": torch.ones(len(progress), len(LAYERS), dtype=progress.dtype)}


def shared(kind: str) -> SharedSchedule:
    config = ScheduleConfig(kind=kind, knots=5, directions=60 if kind == "family" else 6)  # type: ignore[arg-type]
    return SharedSchedule(build_learnable(config, [CONTROL], base, ["width"], LAYERS, seed=0))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["network", "family"])
def test_every_task_starts_at_the_start(kind: str) -> None:
    learned = shared(kind)
    progress = progress_of_steps(7)
    wanted = learned.form(progress, LAYERS)["width"]
    assert torch.equal(learned.at(TASK)(progress, LAYERS)["width"], wanted)
    assert torch.equal(learned.at({})(progress, LAYERS)["width"], wanted)


@pytest.mark.parametrize("kind", ["network", "family"])
def test_numbers_are_linear_in_the_bounded_features(kind: str) -> None:
    learned = shared(kind)
    torch.manual_seed(0)
    with torch.no_grad():
        learned.weights.normal_()
    phi = torch.tensor(bounded(TASK)).double() / math.sqrt(len(FEATURES))
    numbers = learned.weights[0] + (phi[:, None] * learned.weights[1:]).sum(0)
    own = torch.cat([p.flatten() for p in learned.at(TASK).parameters()])
    torch.testing.assert_close(own, numbers)


@pytest.mark.parametrize("kind", ["network", "family"])
def test_the_pulled_back_gradient_is_that_of_autograd(kind: str) -> None:
    learned = shared(kind)
    torch.manual_seed(1)
    with torch.no_grad():
        learned.weights.add_(0.1 * torch.randn_like(learned.weights))
    own = learned.at(TASK)
    values = own(progress_of_steps(5), LAYERS)["width"]
    of_task = torch.autograd.grad((values**3).sum(), list(own.parameters()))

    names, done = [], 0
    numbers, pieces = learned.numbers(TASK), {}
    for name, p in own.named_parameters():
        pieces[name] = numbers[done : done + p.numel()].view_as(p)
        done += p.numel()
        names.append(name)
    played = torch.func.functional_call(own, pieces, (progress_of_steps(5), LAYERS))["width"]
    (direct,) = torch.autograd.grad((played**3).sum(), [learned.weights])
    torch.testing.assert_close(learned.pulled_back(TASK, of_task)[0], direct)


def test_only_the_weights_are_learned() -> None:
    assert [name for name, _ in shared("network").named_parameters()] == ["weights"]
