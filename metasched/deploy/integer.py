"""Converts a hardened quantized network into an integer network with the same function.

Supported are convolution or linear, batch normalization, quantized activation, with max or average pooling anywhere
between them, sums of two tensors (see sums.py), and optionally a thermometer before the first layer. Pooling before an
activation is applied to the sums: average pooling commutes with batch normalization, and max pooling does after
channels with negative gamma have been negated. The last layer may be unquantized: its weights are converted to fixed
point with 24 bits, the precision of float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from metasched.core.errors import MetaschedError
from metasched.deploy.flow import Bounded, Operation, ZeroChannels, flow
from metasched.deploy.folding import Activation, Folding, Value, exact, unit_of, unsupported
from metasched.deploy.stages import (
    Add,
    Array,
    Convolution,
    Encoding,
    Flatten,
    Flip,
    IntegerNetwork,
    Linear,
    MaxPool,
    PadChannels,
    Pair,
    SumPool,
    Thresholds,
)
from metasched.deploy.sums import common_scale, fold_joined, joined
from metasched.deploy.thresholds import Norm, fold
from metasched.methods.tensors import LEARNED, LayerQuantizer
from metasched.models.cutie import Thermometer
from metasched.network.quantize import QuantizedNetwork, Tensors
from metasched.network.sites import ActivationSite
from metasched.quantizers.levels import LevelSet

_NO_SCALE = "put an activation right after the sum, or quantize its branches with one scale, a power of two"
_SHAPES = "give images of the shape that the model was made for"


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


def integer_network(
    network: QuantizedNetwork, params: Tensors, state: Tensors, buffers: Tensors, example: torch.Tensor, step: Fraction
) -> IntegerNetwork:
    """The integer network of a trained quantized network.

    Args:
        network: result of ``quantize``.
        params: parameters after training, not yet hardened; weights are [C_out, ...].
        state: state of the method after training.
        buffers: buffers of the module, with the running statistics of batch normalization.
        example: input [N, C, H, W]; only its shape is used.
        step: real value of 1 in the input codes, see ``input_step``.

    Raises:
        MetaschedError: a layer has no integer form; the message names it.
    """
    quantizer = getattr(network.method, "quantizer", None)
    if network.methods:
        problem = "has rules that give some layers other levels or scales, which have no integer form so far"
        raise MetaschedError("quantize.rules", problem, "use one level set for all layers")
    if not isinstance(quantizer, LayerQuantizer):
        raise MetaschedError("method", "has no level sets to deploy", "use one of metasched's methods")
    for key in ("scale", "activation_scale"):
        if getattr(quantizer, key) in LEARNED:
            what = "is learned, and only fixed scales are folded into integers so far"
            raise MetaschedError(f"method.{key}", what, "set it to a fixed one, such as least_squares or 1.0")
    params, state = ({name: t.detach() for name, t in tensors.items()} for tensors in (params, state))
    levels, unit = quantizer.activation_levels, quantizer.activation_scale
    assert unit != "learned"
    quantized = None if levels is None else Activation(levels, Fraction(unit))
    return folded(
        network.module,
        {**network.harden(params, state), **buffers},
        {layer.name: (quantizer.levels, state[f"{layer.name}/scale"]) for layer in network.layers},
        lambda module: quantized,
        example,
        step,
    )


def folded(
    network: nn.Module,
    tensors: Tensors,
    weights: Mapping[str, tuple[LevelSet, torch.Tensor]],
    activation: Callable[[nn.Module], Activation | None],
    example: torch.Tensor,
    step: Fraction,
) -> IntegerNetwork:
    """The integer network of a network of modules.

    Args:
        network: is traced, see flow.py.
        tensors: hard parameters and buffers by name.
        weights, activation: see ``Folding``.
        example: input [N, C, H, W]; only its shape is used.
        step: real value of 1 in the input codes.

    Raises:
        MetaschedError: a layer has no integer form; the message names it.
    """
    if not isinstance(example, torch.Tensor) or example.dim() != 4:
        has = f"has shape {list(example.shape)}" if isinstance(example, torch.Tensor) else "is not one tensor"
        problem = f"{has}, and images [N, C, H, W] are coded"
        raise MetaschedError(
            "example", problem, "give vectors as [N, C, 1, 1] with a Flatten, sequences as [N, C, 1, L]"
        )
    channels, height, width = example.shape[1:]
    folding = Folding(tensors, weights, activation, (channels, height, width), step)
    values = [folding.value()]
    for name, operation, inputs in flow(network):
        first, *second = (values[i + 1] for i in inputs)
        if second:
            _add(folding, name, first, *second)
        else:
            folding.go_to(first)
            add = _handler(operation)
            if add is None:
                raise unsupported(name, f"is a {type(operation).__name__}, which has no integer form")
            if folding.joined is not None and add not in (_activation, _bounded, _max_pool, _skip):
                raise unsupported(folding.joined.name, f"has no common scale that is exact for {name}", _NO_SCALE)
            add(folding, name, operation)
        values.append(folding.value())
    folding.finish()
    return IntegerNetwork((channels, height, width), step, tuple(folding.stages))


def _handler(operation: Operation) -> Callable[[Folding, str, Any], None] | None:
    stair = isinstance(operation, fx.GraphModule) and hasattr(operation, "quantization")
    return _activation if stair else _HANDLERS.get(type(operation))


def _add(folding: Folding, name: str, ours: Value, theirs: Value) -> None:
    if ours.shape != theirs.shape:
        raise unsupported(name, f"adds tensors of the shapes {list(ours.shape)} and {list(theirs.shape)}", _SHAPES)
    for value in (ours, theirs):
        if value.joined is not None:
            raise unsupported(value.joined.name, f"has no common scale that is exact for {name}", _NO_SCALE)
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
    folding.largest = max(
        abs(a) * reach[0] + abs(b) * reach[1] for a, b in zip(*(m.tolist() for m in multipliers), strict=True)
    )
    folding.stages.append(Add(name, theirs.stage, *multipliers, folding.largest))


def _zero_channels(folding: Folding, name: str, pad: ZeroChannels) -> None:
    if folding.open is not None or len(folding.shape) != 3:
        raise unsupported(name, "pads what is not the output of an activation")
    channels, *size = folding.shape
    if pad.before or pad.after:
        folding.stages.append(PadChannels(pad.before, pad.after))
        folding.shape = (pad.before + channels + pad.after, *size)


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


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
            name, "is not quantized", "set quantize.first and, if it is the last layer, quantize.last to true"
        )
    _, height, width = folding.shape
    stride, padding, dilation = _pair(module.stride), _pair(module.padding), _pair(module.dilation)
    reach = folding.sums(name, weight, steps)
    folding.stages.append(Convolution(name, weight, steps, reach, stride, padding, dilation, module.groups))
    kernel = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    folding.shape = (len(weight), *_windows((height, width), kernel, stride, padding))


def _windows(size: tuple[int, int], kernel: list[int], stride: Pair, padding: Pair) -> list[int]:
    return [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)]


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
    if isinstance(module, ActivationSite) and (module.keep or module.name):
        what = f"computes {module.original.__name__} first" if module.keep else "is called several times"
        raise unsupported(name, f"{what}, which has no integer form so far", "use a ReLU without negative levels")
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
    finest = unit_of(levels.levels)
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


def _max_pool(folding: Folding, name: str, module: nn.Module) -> None:
    assert isinstance(module, nn.MaxPool2d)
    if module.dilation not in (1, (1, 1)) or module.ceil_mode or module.return_indices:
        raise unsupported(name, "is a MaxPool2d with dilation, ceil_mode or return_indices")
    pool = MaxPool(_pair(module.kernel_size), _pair(module.stride), _pair(module.padding))
    if pool == MaxPool((1, 1), (1, 1), (0, 0)):
        return
    _, height, width = folding.shape
    folding.shape = (folding.shape[0], *_windows((height, width), list(pool.kernel), pool.stride, pool.padding))
    folding.stages.append(pool)


def _average(folding: Folding, name: str, rows: list[range], columns: list[range]) -> None:
    channels, height, width = folding.shape
    matrices = _windows_matrix(rows, height), _windows_matrix(columns, width)
    folding.shape = (channels, len(rows), len(columns))
    if all(np.array_equal(m, np.eye(len(m))) for m in matrices):
        return
    factor = int(matrices[0][0].sum() * matrices[1][0].sum())
    folding.largest *= factor
    folding.stages.append(SumPool(name, *matrices, folding.largest))
    if folding.open is None:
        folding.step /= factor
    else:
        folding.open = [c._replace(step=c.step / factor) for c in folding.open]


def _windows_matrix(windows: list[range], size: int) -> Array:
    """Integer matrix [len(windows), size], proportional to the average over each window."""
    multiple = math.lcm(*map(len, windows))
    return np.array([[multiple // len(w) if i in w else 0 for i in range(size)] for w in windows], np.int64)


def _adaptive_average(folding: Folding, name: str, module: nn.Module) -> None:
    assert isinstance(module, nn.AdaptiveAvgPool2d)
    size, (_, *given) = module.output_size, folding.shape
    wanted: Sequence[int | None] = size if isinstance(size, tuple) else (size, size)
    counts = [(n, m or n) for n, m in zip(given, wanted, strict=True)]
    rows, columns = ([range(i * n // m, -(-(i + 1) * n // m)) for i in range(m)] for n, m in counts)
    _average(folding, name, rows, columns)


def _fixed_average(folding: Folding, name: str, module: nn.Module) -> None:
    assert isinstance(module, nn.AvgPool2d)
    if _pair(module.padding) != (0, 0) or module.ceil_mode or module.divisor_override:
        raise unsupported(name, "is an AvgPool2d with padding, ceil_mode or divisor_override")
    kernel, stride = _pair(module.kernel_size), _pair(module.stride)
    _, height, width = folding.shape
    counts = _windows((height, width), list(kernel), stride, (0, 0))
    windows = [[range(i * s, i * s + k) for i in range(m)] for m, k, s in zip(counts, kernel, stride, strict=True)]
    _average(folding, name, windows[0], windows[1])


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


_HANDLERS: dict[type[Operation], Callable[[Folding, str, Any], None]] = {
    ZeroChannels: _zero_channels,
    Bounded: _bounded,
    Thermometer: _thermometer,
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    ActivationSite: _activation,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _fixed_average,
    nn.AdaptiveAvgPool2d: _adaptive_average,
    nn.Flatten: _flatten,
    nn.Identity: _skip,
    nn.Dropout: _skip,
    nn.ReLU: _float_activation,
}
