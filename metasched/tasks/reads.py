"""What each row of the tables of tasks and models reads of the section ``task``, beside what all of them read."""

from __future__ import annotations

_IMAGES = ("train", "validation", "test", "model", "depth", "batch")

TASK_READS: dict[str, tuple[str, ...]] = {  # task.name -> fields of TaskConfig
    "digits": _IMAGES,
    "mnist": ("root", "download", *_IMAGES),
    "fashion_mnist": ("root", "download", *_IMAGES),
    "cifar10": ("root", "download", *_IMAGES),
    "cifar10_npz": ("root", *_IMAGES),
    "imagenet": ("root", "image_size", *_IMAGES),
    "quadratic": (),
}

MODEL_READS: dict[str, tuple[str, ...]] = {  # task.model -> fields of TaskConfig
    "mlp": ("depth",),
    "convnet": ("depth",),
    "lenet": (),
    "cutie": (),
    "vgg7": (),
    "vgg8": (),
    "resnet20": (),
}
