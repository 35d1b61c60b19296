"""ImageNet from a folder of image files, which are read when a step needs them: 150 GB do not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from metasched.core.errors import MetaschedError
from metasched.core.extras import from_extra
from metasched.models import build_model, check_model
from metasched.tasks.classification import accuracy, choose
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import Split, Stored, SupervisedTask
from metasched.tasks.vision import data_root

_LAYOUT = "set task.root to the folder that holds train/CLASS/IMAGE and val/CLASS/IMAGE, as torchvision reads them"
_MARGIN = 256 / 224  # the shorter side is resized to so many times the crop, as torchvision's references do
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the training images of ILSVRC2012, after torchvision
_VALIDATION = 512  # examples in memory: 308 MB at 224 pixels


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images [N, 3, size, size] on disk, standardized; an image is a function of its file alone.

    The shorter side is resized to size * 256 / 224, bilinear and antialiased, and the centre is cropped; nothing is
    augmented. A batch is read by as many threads as there are cores.

    Attributes:
        paths: N of them.
        size: pixels a side.
        place: the device that images are put on.
        dtype: floating.
    """

    paths: tuple[str, ...]
    size: int
    place: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> torch.Size:
        """[N, 3, size, size]."""
        return torch.Size((len(self.paths), 3, self.size, self.size))

    @property
    def device(self) -> torch.device:
        """Where images are put."""
        return torch.device(self.place)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: slice | torch.Tensor) -> torch.Tensor:
        """Reads the images of a slice, or of positions (int64, [n]); at least one.

        Raises:
            MetaschedError: a file that is no image.
        """
        chosen = self.paths[index] if isinstance(index, slice) else [self.paths[i] for i in index.tolist()]
        with ThreadPoolExecutor(os.cpu_count()) as readers:
            pixels = torch.stack(list(readers.map(partial(read_image, size=self.size), chosen)))
        mean, std = (torch.tensor(moments, dtype=torch.float32)[:, None, None] for moments in (_MEAN, _STD))
        return ((pixels.float() / 255 - mean) / std).to(self.place, self.dtype)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ImageFiles:
        """The same images, put elsewhere."""
        return replace(self, place=device, dtype=dtype)


def imagenet_task(config: TaskConfig) -> SupervisedTask:
    """ILSVRC2012, or anything in its form: ``train/CLASS/*.JPEG`` and ``val/CLASS/*.JPEG`` under ``task.root``.

    Training and meta-validation images come from one permutation of ``train``, test images from ``val`` alone. Images
    are of ``task.image_size`` pixels a side. Training and test images stay on disk; the meta-validation part, through
    which the outer loss goes in one pass, is read once and kept.

    Raises:
        MetaschedError: no root, no such folders, classes that only one of the two has, a class without images, a file
            that is no image, or sizes that do not fit.
    """
    shape = (3, config.image_size, config.image_size)
    check_model(config.model, shape, config.depth)
    root = data_root(config, _LAYOUT, must_exist=True)
    pool, official = labelled_files(root / "train"), labelled_files(root / "val")
    _check_classes(root, pool.keys(), official.keys())
    train, y_train = _flat(pool.values())
    test, y_test = _flat(official.values())
    chosen = choose(config, len(train), len(test), _VALIDATION)

    def stored(paths: list[str], y: torch.Tensor, places: torch.Tensor) -> Stored:
        return Stored(ImageFiles(tuple(paths[i] for i in places.tolist()), config.image_size), y[places])

    held_out = stored(train, y_train, chosen.validation)
    return SupervisedTask(
        name=config.name,
        train=stored(train, y_train, chosen.train),
        validation=Split(held_out.x[:], held_out.y),
        test=stored(test, y_test, chosen.test),
        model=partial(build_model, config.model, shape, len(pool), config.width, config.depth),
        criterion=F.cross_entropy,
        metric=accuracy,
        batch_size=config.batch,
    )


def labelled_files(folder: Path) -> dict[str, list[str]]:
    """The image files of each class folder, both sorted by name, so that the i-th class has the label i.

    Raises:
        MetaschedError: no such folder, no class in it, or a class without images.
    """
    with from_extra("train"):
        from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except OSError as error:  # no folder, no class, or a class without images
        why = str(error).partition(". Supported")[0] if folder.is_dir() else "there is no such folder"
        raise MetaschedError("task.root", f"cannot read {folder} ({why})", _LAYOUT) from None
    files: dict[str, list[str]] = {name: [] for name in found.classes}
    for path, label in found.samples:
        files[found.classes[label]].append(path)
    return files


def read_image(path: str, size: int) -> torch.Tensor:
    """One image, uint8 [3, size, size], resized and cropped.

    Raises:
        MetaschedError: the file is no image.
    """
    with from_extra("train"):
        from PIL import Image
        from torchvision.transforms import functional

    try:
        with Image.open(path) as file:
            image = file.convert("RGB")  # some of ILSVRC2012 are grey or CMYK
    except (OSError, SyntaxError, ValueError) as error:
        raise MetaschedError(path, f"cannot be read as an image ({error})", "put it back, or take it out") from None
    resized = functional.resize(image, [round(size * _MARGIN)])  # pyright: ignore[reportArgumentType]: of Pillow
    return functional.pil_to_tensor(functional.center_crop(resized, [size]))


def _check_classes(root: Path, train: Iterable[str], val: Iterable[str]) -> None:
    lacking = [(root / "val", sorted({*train} - {*val})), (root / "train", sorted({*val} - {*train}))]
    for folder, missing in lacking:
        if missing:
            rest = f" nor {len(missing) - 1} other classes" if len(missing) > 1 else ""
            fix = "give train and val the same class folders"
            raise MetaschedError("task.root", f"{folder} has no folder {missing[0]}{rest}", fix)


def _flat(files: Iterable[list[str]]) -> tuple[list[str], torch.Tensor]:
    paths, labels = [], []
    for label, of_class in enumerate(files):
        paths += of_class
        labels += [label] * len(of_class)
    return paths, torch.tensor(labels)
