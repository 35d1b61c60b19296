"""The integer network of a converted network, or of a trained one of the pure core."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import fx, nn

from metasched.core.errors import MetaschedError
from metasched.deploy.assembling import folded
from metasched.deploy.folding import Activation, unsupported
from metasched.deploy.stages import IntegerNetwork
from metasched.network.convert import converted
from metasched.network.flat import Tensors
from metasched.network.quantized import QuantizedNetwork
from metasched.quantizers.levels import LevelSet


def input_step(images: torch.Tensor) -> Fraction:
    """The smallest power of two for which images [N, C, H, W], in multiples of it, fit in 8 bits.

    >>> input_step(torch.tensor([-0.5, 1.0]))
    Fraction(1, 64)

    Raises:
        MetaschedError: there are none, or they are not finite.
    """
    if not images.numel() or not bool(images.isfinite().all()):
        raise MetaschedError("images", "are not finite, or there are none", "leave NaN and infinity out")
    largest = max(float(images.double().abs().max()), 2.0**-100)
    return Fraction(2) ** math.ceil(math.log2(largest / 127))


def integer_of(module: nn.Module, example: torch.Tensor, step: Fraction) -> IntegerNetwork:
    """The integer network of a converted one.

    Args:
        module: as for ``deploy``.
        example: an image, [1, C, H, W]; only its shape is used.
        step: real value of 1 in the input codes, see ``input_step``.

    Raises:
        MetaschedError: as ``deploy``.
    """
    known: list[tuple[str, nn.Module, Any]] = [
        (name, m, m.quantization) for name, m in module.named_modules() if hasattr(m, "quantization")
    ]
    if not known:
        raise MetaschedError("deploy", "the module is not a converted one", "give what metasched.convert returns")
    weights = {name: (LevelSet(q["levels"]), q["scale"]) for name, m, q in known if not isinstance(m, fx.GraphModule)}
    names = {m: name for name, m, _ in known}

    def activation(m: nn.Module) -> Activation | None:
        q: Any = getattr(m, "quantization", None)
        if q is None:
            return None
        if q["clip"] is None:
            fix = "use ReLU, ReLU6 or Hardtanh"
            raise unsupported(names[m], f"computes {type(m.function).__name__} first, which has no integer form", fix)
        return Activation(LevelSet(q["levels"]), Fraction(float(q["scale"])), *q["clip"])

    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return folded(module, {name: t.detach() for name, t in tensors.items()}, weights, activation, example, step)


def integer_network(
    network: QuantizedNetwork, params: Tensors, state: Tensors, buffers: Tensors, example: torch.Tensor, step: Fraction
) -> IntegerNetwork:
    """The integer network of a trained network of the pure core.

    Args:
        network, params, state, buffers: as for ``converted``; not yet hard.
        example, step: as for ``integer_of``.

    Raises:
        MetaschedError: a layer has no integer form; the message names it.
    """
    return integer_of(converted(network, params, state, buffers), example, step)
