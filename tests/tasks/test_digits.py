"""The digits task: sizes, disjointness, standardization, seeds, and the user's mistakes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from metasched.core.errors import MetaschedError
from metasched.tasks import digits
from metasched.tasks.build import build_task
from metasched.tasks.classification import accuracy, channel_moments
from metasched.tasks.config import TaskConfig
from metasched.tasks.splits import split_indices
from metasched.tasks.supervised import SupervisedTask

CONFIG = TaskConfig(name="digits")


@pytest.fixture(scope="module")
def task() -> SupervisedTask:
    return build_task(CONFIG)


def test_default_sizes_shapes_and_dtypes(task: SupervisedTask):
    parts = (task.train, task.validation, task.test)
    assert [len(part.x) for part in parts] == [959, 239, 599]  # a third to test, a fifth of the rest to validate
    for part in parts:
        assert part.x.shape[1:] == (1, 8, 8) and part.x.dtype == torch.float32
        assert part.y.shape == part.x.shape[:1] and part.y.dtype == torch.int64


def test_parts_are_the_standardized_pixels_of_the_split(task: SupervisedTask):
    images, labels = load_digits(return_X_y=True)
    pixels = images.reshape(-1, 1, 8, 8) / 16  # the usual unit; it cancels
    indices = split_indices(1797, 239, 599, CONFIG.data_seed)
    mean, std = pixels[indices.train].mean(), pixels[indices.train].std()
    for part, chosen in zip((task.train, task.validation, task.test), indices, strict=True):
        np.testing.assert_allclose(part.x.numpy(), (pixels[chosen] - mean) / std, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(part.y.numpy(), labels[chosen])


def test_two_builds_are_equal_and_the_data_seed_changes_the_split_alone(task: SupervisedTask):
    again, other = build_task(CONFIG), build_task(replace(CONFIG, data_seed=1))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(task, part).x, getattr(again, part).x)
        assert getattr(task, part).x.shape == getattr(other, part).x.shape
        assert not torch.equal(getattr(task, part).x, getattr(other, part).x)

    def everything(task: SupervisedTask) -> list[int]:
        return torch.cat([task.train.y, task.validation.y, task.test.y]).bincount().tolist()

    def weights(task: SupervisedTask) -> torch.Tensor:
        torch.manual_seed(0)
        return torch.cat([p.detach().flatten() for p in task.build().parameters()])

    assert everything(task) == everything(other)
    assert torch.equal(weights(task), weights(other))


def test_fewer_training_examples_are_a_prefix_and_leave_the_other_parts(task: SupervisedTask):
    small = build_task(replace(CONFIG, train=100))
    assert torch.equal(small.train.y, task.train.y[:100])
    assert torch.equal(small.validation.y, task.validation.y)
    assert torch.equal(small.test.y, task.test.y)


def test_asked_sizes_are_given():
    task = build_task(replace(CONFIG, train=70, validation=30, test=20))
    assert [len(part.x) for part in (task.train, task.validation, task.test)] == [70, 30, 20]


def test_moments_of_channels():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 3, 5, 4), dtype=np.uint8))
    mean, std = channel_moments(x)
    np.testing.assert_allclose(mean, x.numpy().mean((0, 2, 3)), rtol=1e-14)
    np.testing.assert_allclose(std, x.numpy().astype(np.float64).std((0, 2, 3)), rtol=1e-13)


def test_accuracy_counts_the_largest_score():
    outputs = torch.tensor([[0.1, 0.9, 0.0], [2.0, 1.0, 1.0], [0.0, 0.0, 1.0], [3.0, 0.0, 4.0]])
    assert accuracy(outputs, torch.tensor([1, 0, 2, 0])).item() == 0.75


def test_loss_is_the_mean_cross_entropy(task: SupervisedTask):
    scores, targets = torch.tensor([[1.0, 2.0], [0.5, -0.5]]), torch.tensor([0, 0])
    expected = (np.log(1 + np.exp(1.0)) + np.log(1 + np.exp(-1.0))) / 2
    assert task.criterion(scores, targets).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 960}, "task.train: asks for 960 examples, but digits has only 959 for this part; ask for at most"),
        ({"validation": 1198}, "task.validation: asks for 1198 examples, but digits has only 1197 for this part"),
        ({"test": 1796}, "task.test: asks for 1796 examples, but digits has only 1795 for this part"),
        ({"batch": 960}, "task.batch: must be between 2, which batch normalization needs, and the 959 training"),
        ({"train": 32}, "task.batch: must be between 2, which batch normalization needs, and the 32 training"),
        ({"batch": 1}, "task.batch: must be between 2"),
        ({"model": "vgg8"}, "task.model: vgg8 needs images of at least 16x16 pixels, got 8x8; use one of mlp, convnet"),
    ],
)
def test_mistakes_are_one_line_with_the_path(changes: dict[str, Any], message: str):
    with pytest.raises(MetaschedError) as caught:
        build_task(replace(CONFIG, **changes))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sizes"), [({"validation": 1196}, [2, 1196, 599]), ({"batch": 959}, [959, 239, 599])]
)
def test_the_largest_sizes_that_fit_are_allowed(changes: dict[str, int], sizes: list[int]):
    task = build_task(replace(CONFIG, **({"batch": 2} | changes)))
    assert [len(part.x) for part in (task.train, task.validation, task.test)] == sizes


def test_a_scikit_learn_that_keeps_the_file_elsewhere_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    there = digits._table()
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: path.name != "digits.csv.gz" and is_file(path))
    assert np.array_equal(digits._table(), there) and there.dtype == np.int64
