"""The quadratic task against its closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metasched.core.errors import MetaschedError
from metasched.tasks.build import build_task
from metasched.tasks.config import TaskConfig
from metasched.tasks.quadratic import quadratic_task
from metasched.tasks.supervised import SupervisedTask

CURVATURE = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
TARGET = torch.tensor([0.7, -0.2, 1.5], dtype=torch.float64)


def network(task: SupervisedTask, w: list[float]) -> torch.nn.Module:
    model = task.build().double()
    with torch.no_grad():
        next(model.parameters()).copy_(torch.tensor([w]))
    return model


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=3))
def test_loss_and_gradient_are_the_quadratic_s(w: list[float]):
    task = quadratic_task(CURVATURE, TARGET)
    model = network(task, w)
    loss = task.loss(model, task.validation)
    loss.backward()
    a, b = CURVATURE.numpy(), TARGET.numpy()
    np.testing.assert_allclose(loss.item(), 0.5 * np.sum(a * (np.array(w) - b) ** 2), rtol=1e-12, atol=1e-13)
    gradient = next(model.parameters()).grad
    assert gradient is not None
    np.testing.assert_allclose(gradient.numpy()[0], a * (np.array(w) - b), rtol=1e-12, atol=1e-13)


def test_gradient_descent_on_batches_follows_the_closed_form():
    task = quadratic_task(CURVATURE, TARGET)
    w0, lrs = [2.0, -1.0, 0.5], [0.5, 0.1, 0.7, 0.3, 0.05]
    model = network(task, w0)
    w = next(model.parameters())
    for step, lr in enumerate(lrs):
        batch = task.batch(seed=7, step=step)
        (gradient,) = torch.autograd.grad(task.loss(model, batch), w)
        with torch.no_grad():
            w -= lr * gradient
    a, b = CURVATURE.numpy(), TARGET.numpy()
    expected = b + (np.array(w0) - b) * np.prod([1 - lr * a for lr in lrs], axis=0)
    np.testing.assert_allclose(w.detach().numpy()[0], expected, rtol=1e-13)


def test_it_is_solved_at_its_target_and_the_score_is_the_negative_loss():
    task = quadratic_task(CURVATURE, TARGET)
    at_target = network(task, TARGET.tolist())(task.test.x)
    away = network(task, [0.0, 0.0, 0.0])(task.test.x)
    assert task.criterion(at_target, task.test.y).item() == pytest.approx(0.0, abs=1e-30)
    assert task.metric(away, task.test.y) == -task.criterion(away, task.test.y) < task.metric(at_target, task.test.y)


def test_from_a_config_width_is_the_number_of_weights_and_the_data_seed_draws_the_target():
    config = TaskConfig(name="quadratic", width=5)
    task, again, other = (build_task(replace(config, data_seed=seed)) for seed in (0, 0, 1))
    curvature = task.train.x.diagonal() ** 2
    np.testing.assert_allclose(curvature, 10.0 ** np.array([-1, -0.75, -0.5, -0.25, 0]), rtol=1e-6)
    assert sum(p.numel() for p in task.build().parameters()) == task.batch_size == 5
    assert torch.equal(task.train.y, again.train.y)
    assert torch.equal(task.train.x, other.train.x) and not torch.equal(task.train.y, other.train.y)
    assert (task.train.y / task.train.x.diagonal()).abs().max() <= 1
    assert task.train.x.dtype == task.train.y.dtype == torch.float32


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_number_of_examples_is_refused(part: str):
    with pytest.raises(MetaschedError, match=rf"^task\.{part}: quadratic always has task\.width examples"):
        build_task(replace(TaskConfig(name="quadratic"), **{part: 3}))
