"""The integer form of each operation of a network, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from torch import fx, nn

from metasched.deploy.folding import Folding, Value, exact, unit_of, unsupported
from metasched.deploy.operations import Bounded, Operation, ZeroChannels
from metasched.deploy.pooling import adaptive_average, fixed_average, max_pool, pair, windows
from metasched.deploy.stages import (
    Add,
    Convolution,
    Encoding,
    Flatten,
    Flip,
    Linear,
    PadChannels,
    Thresholds,
)
from metasched.deploy.sums import Joined, common_scale, fold_joined, joined, reach_of
from metasched.deploy.thresholds import Norm, fold
from metasched.models.cutie import Thermometer

_Handler = Callable[[Folding, str, Any], None]
_SHAPES = "give images of the shape that the model was made for"


def fold_step(folding: Folding, name: str, operation: Operation, *, sum_alone: bool) -> None:
    """Adds an operation of one tensor, the output of the last stage.

    Args:
        folding: the stages so far.
        name: of the operation.
        operation: what is computed.
        sum_alone: whether that tensor is a sum that nothing else reads.

    Raises:
        MetaschedError: it has no integer form.
    """
    stair = isinstance(operation, fx.GraphModule) and hasattr(operation, "quantization")
    add = _HANDLERS.get(fx.GraphModule if stair else type(operation))
    if add is None:
        raise unsupported(name, f"is a {type(operation).__name__}, which has no integer form")
    if folding.joined is not None:
        averages = add in (adaptive_average, fixed_average) and sum_alone and isinstance(folding.stages[-1], Add)
        if not averages and add not in (_activation, _bounded, max_pool, _skip):
            raise _inexact(folding.joined, name)
    add(folding, name, operation)


def fold_sum(folding: Folding, name: str, ours: Value, theirs: Value) -> None:
    """Adds the sum of two values.

    Raises:
        MetaschedError: their shapes differ, or there is no common scale.
    """
    if ours.shape != theirs.shape:
        raise unsupported(name, f"adds tensors of the shapes {list(ours.shape)} and {list(theirs.shape)}", _SHAPES)
    for value in (ours, theirs):
        if value.joined is not None:
            raise _inexact(value.joined, name)
    if theirs.stage == len(folding.stages) - 1:
        ours, theirs = theirs, ours
    folding.go_to(ours)
    reach = ours.largest, theirs.largest
    found = common_scale(ours.channels, theirs.channels, reach)
    if found is None:
        folding.joined = joined(name, ours.channels, theirs.channels, reach)
        folding.open, multipliers = None, folding.joined.multipliers
    else:
        channels, multipliers = found
        folding.open = None if ours.open is None and theirs.open is None else channels
        folding.step = channels[0].step
    folding.largest = reach_of(multipliers, reach)
    folding.stages.append(Add(name, theirs.stage, *multipliers, folding.largest))


def _inexact(total: Joined, reader: str) -> Exception:
    problem, fix = total.why
    return unsupported(total.name, f"{problem}, so that it is rounded, and {reader} needs an exact sum", fix)


def _zero_channels(folding: Folding, name: str, pad: ZeroChannels) -> None:
    if folding.open is not None or len(folding.shape) != 3:
        raise unsupported(name, "pads what is not the output of an activation")
    channels, *size = folding.shape
    if pad.before or pad.after:
        folding.stages.append(PadChannels(pad.before, pad.after))
        folding.shape = (pad.before + channels + pad.after, *size)


def _thermometer(folding: Folding, name: str, module: nn.Module) -> None:
    assert isinstance(module, Thermometer)
    if folding.stages:
        raise unsupported(name, "is a Thermometer after other layers", "make it the first layer")
    thresholds = [Fraction(a) / folding.step for a in module.thresholds]
    low, high = (np.array([math.ceil(sign * t) for t in thresholds], np.int64) for sign in (-1, 1))
    folding.stages.append(Encoding(low, high))
    channels, *size = folding.shape
    folding.shape = (len(high) * channels, *size)
    folding.step, folding.largest = Fraction(1), 1


def _convolution(folding: Folding, name: str, module: nn.Module) -> None:
    assert isinstance(module, nn.Conv2d)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise unsupported(name, "has a padding other than a fixed number of zeros")
    weight, steps, on_levels = folding.weight(name)
    if len(folding.shape) != 3 or folding.shape[0] != module.in_channels:
        raise unsupported(name, f"needs {module.in_channels} channels, and gets {list(folding.shape)}", _SHAPES)
    if not on_levels:
        raise unsupported(
            name,
            "is not quantized to one set of levels",
            "set quantize.first and, if it is the last layer, quantize.last to true",
        )
    _, height, width = folding.shape
    stride, padding, dilation = pair(module.stride), pair(module.padding), pair(module.dilation)
    reach = folding.sums(name, weight, steps)
    folding.stages.append(Convolution(name, weight, steps, reach, stride, padding, dilation, module.groups))
    kernel = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    folding.shape = (len(weight), *windows((height, width), kernel, stride, padding))


def _linear(folding: Folding, name: str, module: nn.Module) -> None:
    if len(folding.shape) != 1:
        raise unsupported(name, "is a linear layer on images", "put a Flatten before it")
    weight, steps, on_levels = folding.weight(name)
    if folding.shape[0] != weight.shape[1]:
        raise unsupported(name, f"needs {weight.shape[1]} inputs, and gets {folding.shape[0]}", _SHAPES)
    reach = folding.sums(name, weight, steps)
    folding.stages.append(Linear(name, weight, steps, reach, on_levels))
    folding.shape = (len(weight),)


def _norm(folding: Folding, name: str, module: nn.Module) -> None:
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    if folding.open is None or folding.open[0].norm is not None:
        raise unsupported(name, "does not follow a convolution or linear layer")
    if not module.track_running_stats:
        raise unsupported(name, "has no running statistics", "set track_running_stats")
    tensors, count = folding.tensors, len(folding.open)

    def column(key: str, default: float) -> list[Fraction]:
        values = tensors[f"{name}.{key}"].tolist() if f"{name}.{key}" in tensors else [default] * count
        return [exact(name, v) for v in values]

    eps = Fraction(module.eps)
    rows = zip(column("weight", 1), column("bias", 0), column("running_mean", 0), column("running_var", 1), strict=True)
    norms = [Norm(gamma, beta, mean, variance + eps) for gamma, beta, mean, variance in rows]
    channels = [c._replace(norm=norm) for c, norm in zip(folding.open, norms, strict=True)]
    sign = [-1 if norm.gamma < 0 else 1 for norm in norms]
    if -1 in sign:
        folding.stages.append(Flip(np.array(sign, np.int64)))
        channels = [c.flipped() if s < 0 else c for c, s in zip(channels, sign, strict=True)]
    folding.open = channels


def _bounded(folding: Folding, name: str, bounded: Bounded) -> None:
    _activation(folding, name, *bounded)


def _activation(
    folding: Folding, name: str, module: nn.Module, lowest: float = -math.inf, highest: float = math.inf
) -> None:
    quantized = folding.activation(module)
    if (folding.open is None and folding.joined is None) or quantized is None:
        raise unsupported(name, "does not follow a convolution or linear layer")
    levels, unit, low, high = quantized
    low, high = max(low, lowest), min(high, highest)
    # a threshold up to the lower bound is always passed, one above the upper bound never: those levels do not occur
    inside = [k for k, t in enumerate(levels.thresholds) if low < t * unit <= high]
    if not inside:
        raise unsupported(name, "has one level only", "set method.activation_levels to more levels")
    seen = levels.levels[inside[0] : inside[-1] + 2]
    finest = unit_of(name, levels.levels)
    thresholds = [Fraction(levels.thresholds[k]) * unit for k in inside]
    if folding.joined is not None:
        values = fold_joined(folding.joined, thresholds, folding.largest)
    else:
        assert folding.open is not None
        values = fold(folding.open, thresholds, folding.largest)
    integers = tuple(int(q / finest) for q in seen)
    folding.step = unit * finest
    folding.stages.append(Thresholds(name, values, integers, folding.step))
    folding.open, folding.joined, folding.largest = None, None, max(map(abs, integers))


def _flatten(folding: Folding, name: str, module: nn.Module) -> None:
    assert isinstance(module, nn.Flatten)
    if (module.start_dim, module.end_dim) != (1, -1):
        raise unsupported(name, "flattens other dimensions than all but the first")
    if folding.open is not None and folding.shape[1:] != (1, 1):
        raise unsupported(name, "flattens sums that are not quantized", "put an activation before it")
    if len(folding.shape) > 1:
        folding.stages.append(Flatten())
        folding.shape = (math.prod(folding.shape),)


def _skip(folding: Folding, name: str, module: nn.Module) -> None:
    pass


def _float_activation(folding: Folding, name: str, module: nn.Module) -> None:
    fix = "set method.activation_levels, and quantize.first: true"
    raise unsupported(name, "is an activation that is not quantized", fix)


_HANDLERS: dict[type[Operation], _Handler] = {
    ZeroChannels: _zero_channels,
    Bounded: _bounded,
    Thermometer: _thermometer,
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    fx.GraphModule: _activation,
    nn.MaxPool2d: max_pool,
    nn.AvgPool2d: fixed_average,
    nn.AdaptiveAvgPool2d: adaptive_average,
    nn.Flatten: _flatten,
    nn.Identity: _skip,
    nn.Dropout: _skip,
    nn.ReLU: _float_activation,
}
