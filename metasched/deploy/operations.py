"""What a network computes in one step: its modules, and the modules that functions of torch stand for."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F


class Sum(NamedTuple):
    """The sum of two tensors."""


class ZeroChannels(NamedTuple):
    """Channels of zeros, ``before`` and ``after`` those of a tensor [N, C, H, W]."""

    before: int
    after: int


class Bounded(NamedTuple):
    """A quantized activation of clip(x, low, high)."""

    activation: nn.Module
    low: float
    high: float


Operation = nn.Module | Sum | ZeroChannels | Bounded


def of_function(node: fx.Node) -> tuple[Operation | None, list[Any]]:
    """The operation that a function or method stands for, and the tensors that it reads; None: it has no such."""
    match = _FUNCTIONS.get(node.target)
    if match is None or node.op not in ("call_function", "call_method"):
        return None, []
    try:
        return match(*node.args, **node.kwargs)
    except TypeError:  # arguments that no integer form has
        return None, []


def is_sum(node: fx.Node) -> bool:
    """Whether a function or method adds two tensors."""
    return _FUNCTIONS.get(node.target) is _sum


def _sum(input: Any, other: Any) -> tuple[Operation, list[Any]]:
    return Sum(), [input, other]


def _strided(x: Any, index: Any) -> tuple[Operation | None, list[Any]]:
    """x[:, :, ::s, ::t]: a pooling of single pixels."""
    index = index if isinstance(index, tuple) else ()
    strides = [i.step or 1 if isinstance(i, slice) and i.start is i.stop is None else 0 for i in index]
    if len(strides) != 4 or strides[:2] != [1, 1] or min(strides) < 1:
        return None, []
    return nn.MaxPool2d(1, (strides[2], strides[3])), [x]


def _padded(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> tuple[Any, list[Any]]:
    channels = len(pad) == 6 and not any(pad[:4]) and min(pad) >= 0
    return (ZeroChannels(*pad[4:]) if channels and mode == "constant" and not value else None), [input]


def _flattened(input: Any, start_dim: int = 0, end_dim: int = -1) -> tuple[Operation, list[Any]]:
    return nn.Flatten(start_dim, end_dim), [input]


def _averaged(input: Any, output_size: Any) -> tuple[Operation, list[Any]]:
    return nn.AdaptiveAvgPool2d(output_size), [input]


def _max_pooled(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Operation, list[Any]]:
    return nn.MaxPool2d(kernel_size, stride or None, padding, dilation, return_indices, ceil_mode), [input]


def _window_averaged(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> tuple[Operation, list[Any]]:
    pool = nn.AvgPool2d(kernel_size, stride or None, padding, ceil_mode, count_include_pad, divisor_override)
    return pool, [input]


CLIPS: dict[Any, tuple[float, float]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), (0.0, math.inf)),
    F.relu6: (0.0, 6.0),
}
IN_PLACE: tuple[Any, ...] = (operator.iadd, "add_")
_FUNCTIONS: dict[Any, Callable[..., tuple[Operation | None, list[Any]]]] = {
    **dict.fromkeys((operator.add, torch.add, "add", *IN_PLACE), _sum),
    operator.getitem: _strided,
    F.pad: _padded,
    **dict.fromkeys((torch.flatten, "flatten"), _flattened),
    F.adaptive_avg_pool2d: _averaged,
    F.avg_pool2d: _window_averaged,
    F.max_pool2d: _max_pooled,
}
