"""Float networks by name; they do not depend on quantization.

Each activation is a separate ReLU module that runs once per forward pass, so that a quantizer can replace it. Modules
are registered in the order in which they run.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from metasched.core.errors import MetaschedError, unknown_name
from metasched.models.convnet import ConvNet
from metasched.models.cutie import CutieNet
from metasched.models.lenet import LeNet
from metasched.models.mlp import MLP
from metasched.models.resnet import ResNet20
from metasched.models.vgg7 import VGG7
from metasched.models.vgg8 import VGG8

Shape = tuple[int, int, int]  # channels, height, width of one image

MODELS: dict[str, Callable[[Shape, int, int, int], nn.Module]] = {  # of (image, classes, width, depth)
    "mlp": lambda shape, num_classes, width, depth: MLP(math.prod(shape), num_classes, width, depth),
    "convnet": lambda shape, num_classes, width, depth: ConvNet(shape[0], shape[1:], num_classes, width, depth),
    "lenet": lambda shape, num_classes, width, _depth: LeNet(shape[0], shape[1:], num_classes, width),
    "cutie": lambda shape, num_classes, width, _depth: CutieNet(shape[0], shape[1:], num_classes, width),
    "vgg7": lambda shape, num_classes, width, _depth: VGG7(shape[0], num_classes, width),
    "vgg8": lambda shape, num_classes, width, _depth: VGG8(shape[0], num_classes, width),
    "resnet20": lambda shape, num_classes, width, _depth: ResNet20(shape[0], num_classes, width),
}

DEPTH = 3  # hidden layers of the MLP, convolutions of the ConvNet
SMALLEST_DEPTH: dict[str, int] = {"mlp": 1, "convnet": 3}  # the depth of the others is fixed

SMALLEST_IMAGE: dict[str, int] = {  # pixels per side
    "mlp": 1,
    "convnet": 8,
    "lenet": 16,
    "cutie": 8,
    "vgg7": 16,
    "vgg8": 16,
    "resnet20": 8,
}


def build_model(name: str, input_shape: Shape, num_classes: int, width: int, depth: int | None = None) -> nn.Module:
    """A network of the table; its initial weights are drawn from torch's global generator.

    Args:
        name: row of ``MODELS``.
        input_shape: (channels, height, width) of one image.
        num_classes: number of outputs.
        width: channels of the first block (units of the hidden layers for the MLP).
        depth: convolutions of the ConvNet, hidden layers of the MLP; None: three.

    Raises:
        MetaschedError: unknown name, an image that is too small for the network, or a depth that it does not support.
    """
    check_model(name, input_shape, depth)
    return MODELS[name](input_shape, num_classes, width, DEPTH if depth is None else depth)


def check_model(name: str, input_shape: Shape, depth: int | None = None) -> None:
    """Raises MetaschedError if the table has no such network, or if it does not support the image size or the depth."""
    if name not in MODELS:
        raise unknown_name("task.model", name, MODELS)
    _, height, width = input_shape
    smallest = SMALLEST_IMAGE[name]
    if min(height, width) < smallest:
        fitting = ", ".join(other for other, size in SMALLEST_IMAGE.items() if size <= min(height, width))
        raise MetaschedError(
            "task.model",
            f"{name} needs images of at least {smallest}x{smallest} pixels, got {height}x{width}",
            f"use one of {fitting}, or a data set of larger images",
        )
    if depth is None:
        return
    if name not in SMALLEST_DEPTH:
        choices = ", ".join(SMALLEST_DEPTH)
        raise MetaschedError("task.depth", f"{name} has a fixed depth", f"leave it out, or use one of {choices}")
    if depth < SMALLEST_DEPTH[name]:
        problem = f"{name} needs at least {SMALLEST_DEPTH[name]} layers, got {depth}"
        raise MetaschedError("task.depth", problem, "increase it")
