"""Deployment of a converted network: what ``metasched.deploy(module, data, folder)`` does. Nothing is trained."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from metasched.core.errors import MetaschedError
from metasched.core.layer import weight_key
from metasched.deploy.agreement import Twin
from metasched.deploy.files import check_new
from metasched.deploy.integer import input_step, integer_of
from metasched.deploy.stages import IntegerNetwork
from metasched.deploy.thresholds import SLACK
from metasched.deploy.writing import write_deployed
from metasched.tracking.console import Console, open_console

Data = torch.Tensor | Iterable[Any]


def deploy(
    module: nn.Module, data: Data, folder: str | os.PathLike[str], console: Console | None = None
) -> dict[str, Any]:
    """Folds a converted network into integers, compares all forms on the data, and writes the folder, or nothing.

    The files are those of ``metasched deploy``: the integer network, packed weights with the account of their size,
    golden outputs, ONNX with weights of 2, 4 or 8 bits (extra ``deploy``), files for CUTIE. What PyTorch, the integer
    simulator, ONNX Runtime and QONNX compute is compared activation by activation, on all of the data.

    Args:
        module: what ``convert`` has returned: a sequence of convolutions (of any groups), linear layers, batch
            normalizations, activations and poolings.
        data: images [N, C, H, W] that cover the range of the inputs; or batches of them, alone or before their classes.
        folder: is made.
        console: where the account is shown; None: nowhere.

    Returns:
        the score where there are classes, the agreement, the compression.

    Raises:
        MetaschedError: the module is not converted, a layer has no integer form (the message names it), the data are no
            images, or the folder exists.
    """
    path = Path(folder)
    check_new(path)
    images, labels = _gathered(data)
    return deploy_images(module, input_step(images), images, labels, {}, path, console or open_console(StringIO()))


def deploy_images(
    module: nn.Module,
    step: Fraction,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    more: Mapping[str, Any],
    folder: Path,
    console: Console,
) -> dict[str, Any]:
    """``deploy`` for codes of a given step, with further entries of the account.

    Args:
        module: as for ``deploy``.
        step: real value of 1 in the input codes, see ``input_step``.
        images: [N, C, H, W]; those beyond 8 bits are cut.
        labels: their classes, [N]; None where they are not known.
        more: entries of the account, written after the score.
        folder, console: as for ``deploy``.

    Raises:
        MetaschedError: as ``deploy``.
    """
    integer = integer_of(module, images[:1], step)
    codes = integer.encode(images.cpu().numpy())
    classes = None if labels is None else labels.cpu().numpy()
    return write_deployed(integer, twin_of(module, integer), codes, classes, more, folder, console)


def twin_of(module: nn.Module, integer: IntegerNetwork) -> Twin:
    """The converted network in float64, with the deployed weights and the slack of thresholds.

    Args:
        module: as for ``deploy``.
        integer: its integer network, which gives the weights and the step of the input.

    Returns:
        a function from codes, int64 [N, C, H, W], to the outputs, float64 [N, K], and the list of the levels of each
        activation in order, float64 [N, ...].
    """
    double = copy.deepcopy(module).double().eval()
    like = next(double.parameters())
    seen: list[torch.Tensor] = []
    for name, m in module.named_modules():
        if isinstance(m, fx.GraphModule) and hasattr(m, "quantization"):  # which a copy has lost
            stair = double.get_submodule(name)
            stair.register_forward_pre_hook(lambda m, inputs: (inputs[0] + float(SLACK),))
            stair.register_forward_hook(lambda m, inputs, output: seen.append(output.clone()))
    with torch.no_grad():
        for layer in integer.weighted:
            steps = torch.tensor([float(s) for s in layer.steps], dtype=torch.float64, device=like.device)
            weight = torch.from_numpy(layer.weight).to(like)
            double.get_parameter(weight_key(layer.name)).copy_(weight * steps.reshape(-1, *[1] * (weight.dim() - 1)))

    def twin(codes: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        seen.clear()
        with torch.no_grad():
            outputs = double(codes.to(like) * float(integer.step))
        return outputs, list(seen)

    return twin


def _gathered(data: Data) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All images [N, C, H, W], and their classes [N] where every batch has them.

    Raises:
        MetaschedError: there are none, or their shapes or numbers do not fit.
    """
    if isinstance(data, torch.Tensor):
        return data, None
    if not isinstance(data, Iterable):
        raise _not_images(f"is of type {type(data).__name__}")
    batches = [batch if isinstance(batch, Sequence) else [batch] for batch in data]
    images = [batch[0] for batch in batches if batch]
    if not images or not all(isinstance(x, torch.Tensor) and x.ndim == 4 for x in images):
        raise _not_images("has no batches of images")
    if len(shapes := {tuple(x.shape[1:]) for x in images}) > 1:
        raise _not_images(f"has images of the shapes {', '.join(map(str, sorted(shapes)))}")
    if not all(len(batch) > 1 for batch in batches):
        return torch.cat(images), None
    for x, (_, y, *_) in zip(images, batches, strict=True):
        if not isinstance(y, torch.Tensor) or y.shape != x.shape[:1]:
            raise MetaschedError("data", "has classes that are not one number for each image", "give a tensor [N]")
    return torch.cat(images), torch.cat([batch[1] for batch in batches])


def _not_images(problem: str) -> MetaschedError:
    return MetaschedError("data", problem, "give a tensor [N, C, H, W], or batches of them")
