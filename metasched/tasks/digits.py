"""The handwritten digits that scikit-learn carries: real images without a download."""

from __future__ import annotations

import torch

from metasched.tasks.classification import classification_task
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import Split, SupervisedTask


def digits_task(config: TaskConfig) -> SupervisedTask:
    """1,797 digits of 8x8 pixels in ten classes: by default 959 to train, 239 to validate, 599 to test.

    Source: the test part of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, as ``sklearn.datasets.load_digits``; pixels count 0 to 16. It has no official split.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).to(torch.uint8).reshape(-1, 1, 8, 8)
    return classification_task(config, Split(pixels, torch.from_numpy(labels).long()), official_test=None)
