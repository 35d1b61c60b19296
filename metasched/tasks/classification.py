"""From labelled images to a classification task: split, standardize, cross entropy, accuracy."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional as F

from metasched.core.errors import MetaschedError
from metasched.models import build_model, check_model
from metasched.tasks.config import TaskConfig
from metasched.tasks.splits import Indices, split_indices
from metasched.tasks.supervised import Split, SupervisedTask

NUM_CLASSES = 10  # of every data set of the package but imagenet


def classification_task(
    config: TaskConfig, pool: Split, official_test: Split | None, num_classes: int = NUM_CLASSES
) -> SupervisedTask:
    """A task from images, x uint8 [N, C, H, W] and y int64 [N], with disjoint parts.

    Training and validation examples come from one permutation of the pool, the test examples from the official test
    set alone, or, where there is none, from the same permutation of the pool. Sizes default to a third of the pool for
    the test part (or the whole official test set), a fifth of what that leaves for validation, and the rest for
    training. Inputs are float32, standardized by the mean and standard deviation of each channel of the training
    examples; being independent of the unit, that needs no division by the largest pixel value first.

    Raises:
        MetaschedError: more examples asked for than there are, a batch that does not fit, or a model that does not.
    """
    channels, height, width = pool.x.shape[1:]
    check_model(config.model, (channels, height, width), config.depth)
    chosen = choose(config, len(pool.x), None if official_test is None else len(official_test.x))
    train, test = _take(pool, chosen.train), _take(pool if official_test is None else official_test, chosen.test)
    mean, std = channel_moments(train.x)
    return SupervisedTask(
        name=config.name,
        train=_standardize(train, mean, std),
        validation=_standardize(_take(pool, chosen.validation), mean, std),
        test=_standardize(test, mean, std),
        model=partial(build_model, config.model, (channels, height, width), num_classes, config.width, config.depth),
        criterion=F.cross_entropy,
        metric=accuracy,
        batch_size=config.batch,
    )


def choose(config: TaskConfig, pool: int, official_test: int | None, validation: int | None = None) -> Indices:
    """Which examples each part takes, as ``classification_task`` says it.

    Args:
        config: sizes and seed.
        pool: how many examples there are for training and validation.
        official_test: size of the official test set, of which the test part then is; None: it is of the pool.
        validation: default of its size, if not a fifth.

    Raises:
        MetaschedError: more examples asked for than there are, or a batch that does not fit.
    """
    reserved = part_size(config, "test", pool // 3, available=pool - 2) if official_test is None else 0
    remaining = pool - reserved
    default = max(1, remaining // 5) if validation is None else min(validation, remaining - 1)
    num_validation = part_size(config, "validation", default, available=remaining - 1)
    indices = split_indices(pool, num_validation, reserved, config.data_seed)

    num_train = part_size(config, "train", len(indices.train), available=len(indices.train))
    check_batch(config, num_train)
    test = indices.test
    if official_test is not None:
        num_test = part_size(config, "test", official_test, available=official_test)
        test = split_indices(official_test, 0, num_test, config.data_seed).test
    return Indices(indices.train[:num_train], indices.validation, test)


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Share of rows of outputs [N, K] whose largest entry is at the target [N]; 0-d, in the outputs' dtype.

    >>> float(accuracy(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])))
    0.5
    """
    return (outputs.argmax(dim=1) == targets).to(outputs.dtype).mean()


def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (population) standard deviation of each channel of uint8 images [N, C, H, W], float64 [C].

    Taken from exact counts of the 256 values, so that they do not depend on the order of a sum or on threads.
    """
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in x.unbind(1)]).double()
    value = torch.arange(256, dtype=torch.float64)
    share = counts / counts.sum(1, keepdim=True)
    mean = (share * value).sum(1)
    variance = (share * (value - mean[:, None]) ** 2).sum(1)
    return mean, variance.sqrt()


def _standardize(images: Split, mean: torch.Tensor, std: torch.Tensor) -> Split:
    divisor = torch.where(std > 0, std, 1.0)  # a channel without variation becomes 0
    x = images.x.float()
    x -= mean.float()[:, None, None]
    x /= divisor.float()[:, None, None]
    return Split(x, images.y)


def _take(images: Split, indices: torch.Tensor) -> Split:
    return Split(images.x[indices], images.y[indices])


def check_batch(config: TaskConfig, train: int) -> None:
    """Refuses a batch that does not fit.

    Raises:
        MetaschedError: it has one example, or more than the training part.
    """
    if not 2 <= config.batch <= train:
        raise MetaschedError(
            "task.batch",
            f"must be between 2, which batch normalization needs, and the {train} training examples, "
            f"got {config.batch}",
            f"set it to {min(64, train)}",
        )


def part_size(config: TaskConfig, part: str, default: int, available: int) -> int:
    """The size of a part: what ``task.PART`` asks for, if there is so much, or its default.

    Raises:
        MetaschedError: there is less than is asked for.
    """
    asked: int | None = getattr(config, part)
    if asked is None:
        return default
    if asked > available:
        raise MetaschedError(
            f"task.{part}",
            f"asks for {asked} examples, but {config.name} has only {available} for this part",
            f"ask for at most {available}",
        )
    return asked
