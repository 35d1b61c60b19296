"""Float networks by name, which know nothing of quantization. The table does not import torch; the builders do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metasched.core.errors import MetaschedError
from metasched.core.rows import find_row
from metasched.models.table import MODELS, ModelSpec, Shape, register_model

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "ModelSpec", "Shape", "build_model", "check_model", "register_model"]

DEPTH = 3  # hidden layers of the MLP, convolutions of the ConvNet


def build_model(name: str, input_shape: Shape, num_classes: int, width: int, depth: int | None = None) -> nn.Module:
    """A network of the table; its initial weights are drawn from torch's global generator.

    Args:
        name: row of ``MODELS``.
        input_shape: (channels, height, width) of one image.
        num_classes: number of outputs.
        width: channels of the first block (units of the hidden layers for the MLP).
        depth: convolutions of the ConvNet, hidden layers of the MLP; None: three, or the model's least if that is more.

    Raises:
        MetaschedError: unknown name, an image that is too small for the network, or a depth that it does not support.
    """
    check_model(name, input_shape, depth)
    spec = MODELS[name]
    return spec.builder(
        input_shape, num_classes, width, max(DEPTH, spec.smallest_depth or 1) if depth is None else depth
    )


def check_model(name: str, input_shape: Shape, depth: int | None = None) -> None:
    """Raises MetaschedError if the table has no such network, or if it does not support the image size or the depth."""
    spec, side = find_row(MODELS, "task.model", name), min(input_shape[1:])
    if side < spec.smallest_image:
        fitting = ", ".join(other.name for other in MODELS.values() if other.smallest_image <= side)
        smallest, (_, height, width) = spec.smallest_image, input_shape
        raise MetaschedError(
            "task.model",
            f"{name} needs images of at least {smallest}x{smallest} pixels, got {height}x{width}",
            f"use one of {fitting}, or a data set of larger images",
        )
    if depth is None:
        return
    if spec.smallest_depth is None:
        choices = ", ".join(other.name for other in MODELS.values() if other.smallest_depth is not None)
        raise MetaschedError("task.depth", f"{name} has a fixed depth", f"leave it out, or use one of {choices}")
    if depth < spec.smallest_depth:
        problem = f"{name} needs at least {spec.smallest_depth} layers, got {depth}"
        raise MetaschedError("task.depth", problem, "increase it")
