"""The table of models: one row, a ``ModelSpec``, per float network. It does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metasched.core.lazy import Lazy, origin
from metasched.core.rows import check_row

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, int, int]  # channels, height, width of one image


@dataclass(frozen=True)
class ModelSpec:
    """One row of the table of models.

    Attributes:
        name: ``task.model``.
        summary: description in a few words.
        builder: (shape of an image, number of classes, width, depth) -> nn.Module that maps [N, C, H, W] to [N,
            classes], with its weights drawn from torch's global generator. Each activation is a module of its own that
            runs once per forward pass, so that a quantizer can replace it; modules are registered in the order in
            which they run.
        smallest_image: least height and width of an image, in pixels.
        smallest_depth: least depth; None: the depth is fixed, and ``task.depth`` has no effect.
    """

    name: str
    summary: str
    builder: Callable[[Shape, int, int, int], nn.Module]
    smallest_image: int = 1
    smallest_depth: int | None = None

    @property
    def origin(self) -> str:
        """Where its builder is defined."""
        return origin(self.builder)

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of TaskConfig that it reads, beside those that all models read."""
        return () if self.smallest_depth is None else ("depth",)


MODELS: dict[str, ModelSpec] = {}


def register_model(spec: ModelSpec) -> ModelSpec:
    """Add a model to the table of this process; ``task.model`` can then be its name.

    Call it at the top level of the model's module: worker processes import the module and then know the model too.

    Raises:
        MetaschedError: an invalid name, or a name that is in use.
    """
    check_row(MODELS, "task.model", spec)
    MODELS[spec.name] = spec
    return spec


for _row in (
    ModelSpec("mlp", "multilayer perceptron", Lazy("metasched.models.mlp:build"), 1, smallest_depth=1),
    ModelSpec("convnet", "small convolutional network", Lazy("metasched.models.convnet:build"), 8, smallest_depth=3),
    ModelSpec("lenet", "LeNet of GXNOR-Net", Lazy("metasched.models.lenet:build"), 16),
    ModelSpec("cutie", "network of the CUTIE accelerator", Lazy("metasched.models.cutie:build"), 8),
    ModelSpec("vgg7", "VGG7 of GXNOR-Net", Lazy("metasched.models.vgg7:build"), 16),
    ModelSpec("vgg8", "VGG8 of ANA", Lazy("metasched.models.vgg8:build"), 16),
    ModelSpec("resnet20", "ResNet-20", Lazy("metasched.models.resnet:build"), 8),
    ModelSpec("vanilla_cnn", "LeNet-5 with batch normalization", Lazy("metasched.models.vanilla_cnn:build"), 16),
    ModelSpec("resnet9", "ResNet-9 of cifar10-fast", Lazy("metasched.models.resnet9:build"), 8),
    ModelSpec("vgg16", "VGG-16 with batch normalization", Lazy("metasched.models.vgg16:build"), 8),
):
    register_model(_row)
