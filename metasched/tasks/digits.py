"""The handwritten digits that scikit-learn carries: real images without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from metasched.core.extras import missing
from metasched.tasks.classification import classification_task
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import Split, SupervisedTask


def digits_task(config: TaskConfig) -> SupervisedTask:
    """1,797 digits of 8x8 pixels in ten classes: by default 959 to train, 239 to validate, 599 to test.

    Source: the test part of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, as ``sklearn.datasets.load_digits``; pixels count 0 to 16. It has no official split.
    """
    table = torch.from_numpy(_table())
    pixels = table[:, :-1].to(torch.uint8).reshape(-1, 1, 8, 8)
    return classification_task(config, Split(pixels, table[:, -1].clone()), official_test=None)


def _table() -> np.ndarray:
    """The 64 pixels and the class of each image, [N, 65], int64.

    The file that scikit-learn keeps them in is read where it is: importing scikit-learn takes longer than many a run.
    """
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise missing("scikit-learn", "train")
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        return np.loadtxt(file, delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # of a release that keeps them elsewhere
    return np.hstack([np.asarray(pixels), np.asarray(labels)[:, None]]).astype(np.int64)
