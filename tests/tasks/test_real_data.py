"""The loaders on the real data sets, where METASCHED_DATA names the folder that holds them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metasched.tasks import vision
from metasched.tasks.build import build_task
from metasched.tasks.classification import channel_moments
from metasched.tasks.config import TaskConfig

pytestmark = pytest.mark.data

# of the training part: examples of each class; mean and standard deviation of each channel, of pixels / 255.
# MNIST, Fashion-MNIST, CIFAR-10: the values in common use; the subset is the first batch of CIFAR-10.
EXPECTED: dict[str, tuple[list[int], list[float], list[float]]] = {
    "mnist": ([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], [0.1307], [0.3081]),
    "fashion_mnist": ([6000] * 10, [0.2860], [0.3530]),
    "cifar10": ([5000] * 10, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "cifar10_npz": (
        [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981],
        [0.4935, 0.4834, 0.4472],
        [0.2476, 0.2446, 0.2626],
    ),
}
FOLDER = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "cifar-10-batches-py", "cifar10_npz": "."}


@pytest.fixture(params=EXPECTED)
def config(request: pytest.FixtureRequest) -> TaskConfig:
    root = os.environ.get("METASCHED_DATA")
    if root is None:
        pytest.skip("METASCHED_DATA is not set")
    if not (Path(root) / FOLDER[request.param]).is_dir():
        pytest.skip(f"METASCHED_DATA does not hold {request.param}")
    return TaskConfig(name=request.param, root=root)


def test_pixels_and_classes_are_the_published_ones(config: TaskConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vision, "classification_task", lambda config, pool, test: pool)
    pool: Any = build_task(config)
    classes, mean, std = EXPECTED[config.name]
    assert pool.y.bincount().tolist() == classes
    for moment, expected in zip(channel_moments(pool.x), (mean, std), strict=True):
        np.testing.assert_allclose(moment / 255, expected, atol=5e-5)


def test_a_fifth_of_the_training_part_is_for_validation(config: TaskConfig):
    task = build_task(config)
    total = sum(EXPECTED[config.name][0])
    assert [len(task.train.y), len(task.validation.y)] == [total - total // 5, total // 5]
    assert (task.train.y.bincount() + task.validation.y.bincount()).tolist() == EXPECTED[config.name][0]
