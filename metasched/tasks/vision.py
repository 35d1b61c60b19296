"""Image data sets read from a folder: MNIST, Fashion-MNIST, CIFAR-10 and -100 of torchvision, and a CIFAR-10 subset."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from metasched.core.errors import MetaschedError
from metasched.core.extras import from_extra
from metasched.tasks.classification import NUM_CLASSES, classification_task
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import Split, SupervisedTask

NPZ = "cifar10_10k_2k.npz"

_TORCHVISION = {  # name -> torchvision's class, the folder that it reads under the root, number of classes
    "mnist": ("MNIST", "MNIST/raw", NUM_CLASSES),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw", NUM_CLASSES),
    "cifar10": ("CIFAR10", "cifar-10-batches-py", NUM_CLASSES),
    "cifar100": ("CIFAR100", "cifar-100-python", 100),
}


def torchvision_task(config: TaskConfig) -> SupervisedTask:
    """MNIST, Fashion-MNIST (28x28 grey), CIFAR-10 or CIFAR-100 (32x32 RGB) with their official test sets.

    Files are read from ``task.root`` as torchvision lays them out; the network is asked only with ``task.download``.

    Raises:
        MetaschedError: no root, or no readable data set in it; and as for ``classification_task``.
    """
    with from_extra("train"):
        from torchvision import datasets

    class_name, folder, num_classes = _TORCHVISION[config.name]
    fix = f"set task.root to the folder that holds {folder}; task.download: true fetches it there"
    root = data_root(config, fix, must_exist=not config.download)
    dataset = getattr(datasets, class_name)
    try:
        train, test = (dataset(root, train=train, download=config.download) for train in (True, False))
    except Exception as error:  # torchvision's readers raise whatever they stumble on
        raise MetaschedError("task.root", f"cannot read {config.name} in {root} ({error})", fix) from error
    return classification_task(config, _split(train.data, train.targets), _split(test.data, test.targets), num_classes)


def npz_task(config: TaskConfig) -> SupervisedTask:
    """A CIFAR-10 subset in one file of numpy arrays, ``cifar10_10k_2k.npz``: 10,000 training and 2,000 test images.

    It is read at the root or in its folder ``cifar10-subset``; arrays ``x_train``, ``x_test`` uint8 [N, 32, 32, 3],
    ``y_train``, ``y_test`` integers [N] in 0..9. Nothing in it is unpickled.

    Raises:
        MetaschedError: no root, no such file, or arrays of another kind; and as for ``classification_task``.
    """
    fix = f"set task.root to the folder that holds {NPZ}, with arrays x_train, y_train, x_test, y_test"
    root = data_root(config, fix, must_exist=True)
    file = next((path for path in (root / NPZ, root / "cifar10-subset" / NPZ) if path.is_file()), None)
    if file is None:
        raise MetaschedError("task.root", f"there is no {NPZ} in {root}", fix)
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    except Exception as error:  # zipfile, numpy and zlib each raise their own
        raise MetaschedError("task.root", f"cannot read {file} ({error})", fix) from error
    for part in ("train", "test"):
        _check_arrays(file, part, arrays[f"x_{part}"], arrays[f"y_{part}"])
    return classification_task(
        config, _split(arrays["x_train"], arrays["y_train"]), _split(arrays["x_test"], arrays["y_test"])
    )


def data_root(config: TaskConfig, fix: str, must_exist: bool) -> Path:
    """The folder that ``task.root`` names.

    Raises:
        MetaschedError: it is missing, with ``fix`` as what to do; or, if it must exist, it does not.
    """
    if config.root is None:
        raise MetaschedError("task.root", f"is missing, but {config.name} is read from a folder", fix)
    root = Path(os.path.expanduser(config.root))  # as Path does it, but ~nobody stays as it is
    if must_exist and not os.path.isdir(root):
        raise MetaschedError("task.root", f"there is no folder {root}", fix)
    return root


def _split(pixels: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor | list[int]) -> Split:
    """Pixels [N, H, W] or [N, H, W, C] to images [N, C, H, W]."""
    x = torch.as_tensor(pixels)
    return Split(x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2), torch.as_tensor(labels).long())


def _check_arrays(file: Path, part: str, x: np.ndarray, y: np.ndarray) -> None:
    def wrong(key: str, expected: str, got: str) -> MetaschedError:
        return MetaschedError("task.root", f"{key} in {file} must be {expected}, got {got}", "make the file anew")

    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (32, 32, 3):
        raise wrong(f"x_{part}", "uint8 of shape (N, 32, 32, 3)", f"{x.dtype} of shape {x.shape}")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise wrong(f"y_{part}", f"integers of shape ({len(x)},)", f"{y.dtype} of shape {y.shape}")
    if y.size and not 0 <= int(y.min()) <= int(y.max()) < NUM_CLASSES:
        raise wrong(f"y_{part}", f"labels in 0..{NUM_CLASSES - 1}", f"{y.min()} to {y.max()}")
