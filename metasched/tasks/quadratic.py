"""A separable quadratic: the task whose training has a closed form, to check everything else against."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.randomness import generator
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import Split, SupervisedTask


def quadratic_task(curvature: torch.Tensor, target: torch.Tensor) -> SupervisedTask:
    """Full-batch least squares with loss(w) = 1/2 sum_i a_i (w_i - b_i)^2.

    The network is one linear layer without bias, w [1, n]. Row i of the inputs is sqrt(a_i) in place i and 0
    elsewhere, its target is sqrt(a_i) b_i, and the loss is half the *sum* of the squared errors, so every batch is the
    whole set. Gradient descent with step sizes lr_t is, in each coordinate,

        w_{t+1} = w_t - lr_t a (w_t - b),   so   w_T = b + (w_0 - b) prod_{t<T} (1 - lr_t a),

    which converges for 0 < lr < 2 / max(a). Training, validation and test part are the same n rows: there is nothing
    to overfit. The score is the negative loss.

    Args:
        curvature: a, [N], positive, with N = n.
        target: b, [N], in the dtype of ``curvature``.

    >>> task = quadratic_task(torch.tensor([4.0, 1.0]), torch.tensor([0.5, -1.0]))
    >>> float(task.criterion(task.train.x @ torch.zeros(2), task.train.y))
    1.0
    """
    assert curvature.ndim == 1 and curvature.shape == target.shape and bool((curvature > 0).all())
    root = curvature.sqrt()
    rows = Split(torch.diag(root), root * target)
    n = len(curvature)
    parts = (rows, rows, rows)
    build = partial(_build, n)
    return SupervisedTask("quadratic", *parts, build, half_squared_error, _negative_loss, n, worst_score=None)


def default_quadratic(config: TaskConfig) -> SupervisedTask:
    """A quadratic of n = ``task.width``: curvatures log-spaced from 0.1 to 1, targets uniform in [-1, 1).

    The seed of the targets is ``task.data_seed``. Root, model and batch of the config play no part.

    Raises:
        MetaschedError: a number of examples is asked for.
    """
    for part in ("train", "validation", "test"):
        if getattr(config, part) is not None:
            raise MetaschedError(f"task.{part}", "quadratic always has task.width examples", "leave it out")
    target = 2 * torch.rand(config.width, generator=generator(config.data_seed, "quadratic"), dtype=torch.float32) - 1
    return quadratic_task(torch.logspace(-1, 0, config.width, dtype=torch.float32), target)


def half_squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1/2 sum (outputs - targets)^2, 0-d."""
    return (outputs - targets).square().sum() / 2


def _negative_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -half_squared_error(outputs, targets)


def _build(n: int) -> nn.Module:
    return nn.Sequential(OrderedDict(linear=nn.Linear(n, 1, bias=False), flatten=nn.Flatten(0)))
