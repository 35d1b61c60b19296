"""From a trained network and inputs without labels to an integer network with scales and zero points; see affine.py.

Weights on levels (a result of ``convert``) keep their integers and scales; those in float get 8 bits, symmetric, with a
scale for each output channel. Batch normalization is folded into scales and biases, so that no weight is rounded again:

    gamma (S_w w x + b - mu) / sigma + beta = (S_w gamma / sigma) w x + (b - mu) gamma / sigma + beta

Codes of activations reach from the lowest to the highest value of a pass of the inputs, as in section 3 of Jacob et al.
(there a moving average over training).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from metasched.calibration.batches import Batches, checked, placed
from metasched.core.errors import MetaschedError
from metasched.core.layer import weight_key
from metasched.deploy.affine import TOP, Affine, AffineNetwork, AffineStage, Clip, Multiplier, Weighted
from metasched.deploy.flow import Step, flow
from metasched.deploy.folding import Folding, unsupported
from metasched.deploy.pooling import adaptive_average, fixed_average, max_pool, pair
from metasched.deploy.stages import Convolution, Flatten, Linear, MaxPool, SumPool
from metasched.network.flat import Tensors
from metasched.quantizers.levels import LevelSet

_LARGEST = 127  # of weights that are in float; [-127, 127] as in the source
_INT32 = 2**31
_LIFT = 8  # k at most
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_CLIPS = (nn.ReLU, nn.Hardtanh)  # ReLU6 is a Hardtanh
_NOTHING = (nn.Identity, nn.Dropout)
_KNOWN = "it takes Conv2d, Linear, BatchNorm, ReLU, ReLU6, Hardtanh, poolings and Flatten, one after the other"
_POOLS = {nn.MaxPool2d: max_pool, nn.AvgPool2d: fixed_average, nn.AdaptiveAvgPool2d: adaptive_average}


def affine_network(module: nn.Module, batches: Batches) -> AffineNetwork:
    """The integer network of a trained one, with scales and zero points.

    Args:
        module: a chain of layers: what ``convert`` returns, with activations in float, or any float network.
        batches: inputs [N, ...] without labels, which say how far activations reach.

    Raises:
        MetaschedError: bad batches, a layer that it cannot take, or a bias or sum beyond 32 bits, by name.
    """
    steps = flow(module)
    plain = copy.deepcopy(module).eval()
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    inputs = [args[0] for args, kwargs in placed(checked(batches), like) if args]
    if not inputs:
        raise MetaschedError("calibrate: batches", "has keyword arguments, and this takes inputs", "give tensors")
    for i, step in enumerate(steps):
        if step.inputs != (i - 1,):
            raise unsupported(step.name, "reads an earlier tensor, or two of them", _KNOWN)
    names = {m: name for name, m in module.named_modules()}
    modules = [_module(plain, names, step) for step in steps]
    ranges, shapes = _ranges(modules, inputs)
    building = _Building(ranges, shapes)
    i = 0
    while i < len(steps):
        i = building.add(steps, modules, i)
    return AffineNetwork(building.first, building.now, tuple(building.stages))


def _module(plain: nn.Module, names: Mapping[nn.Module, str], step: Step) -> nn.Module:
    """The module of a step: that of the copy, whose network has these names, or of its own for a function.

    Raises:
        MetaschedError: none that has a form here.
    """
    if not isinstance(step.operation, (nn.Conv2d, nn.Linear, *_NORMS, *_CLIPS, *_NOTHING, nn.Flatten, *_POOLS)):
        name = type(step.operation).__name__
        levels = isinstance(step.operation, torch.fx.GraphModule)
        problem = "is an activation on levels, whose thresholds metasched.deploy has" if levels else f"is a {name}"
        raise unsupported(step.name, f"{problem}, which has no zero point here", _KNOWN)
    operation = cast(nn.Module, step.operation)
    return plain.get_submodule(names[operation]) if operation in names else operation


@torch.no_grad()
def _ranges(
    modules: Sequence[nn.Module], inputs: Sequence[torch.Tensor]
) -> tuple[list[tuple[float, float]], list[tuple[int, ...]]]:
    """The lowest and highest value of the inputs and after each module, and the shapes without N."""
    ranges, shapes = [(math.inf, -math.inf)] * (len(modules) + 1), list[tuple[int, ...]]()
    for x in inputs:
        shapes = []
        for i in range(len(modules) + 1):
            x = x if i == 0 else modules[i - 1](x.clone())  # modules may write to what they get
            if not bool(x.isfinite().all()):
                raise MetaschedError("model", "puts out numbers that are not finite", "train it again")
            ranges[i] = min(ranges[i][0], float(x.min())), max(ranges[i][1], float(x.max()))
            shapes.append(tuple(x.shape[1:]))
    return ranges, shapes


class _Building:
    """The stages so far, and what the codes of the last one stand for."""

    def __init__(self, ranges: list[tuple[float, float]], shapes: list[tuple[int, ...]]) -> None:
        self.ranges, self.shapes = ranges, shapes
        self.first = self.now = Affine.of(*ranges[0])
        self.stages: list[AffineStage] = []

    def add(self, steps: Sequence[Step], modules: Sequence[nn.Module], i: int) -> int:
        """Adds step i, with what is folded into it; returns the next one."""
        name, module = steps[i].name, modules[i]
        if isinstance(module, nn.Conv2d | nn.Linear):
            end = i + 1
            norm = modules[end] if end < len(modules) and isinstance(modules[end], _NORMS) else None
            end += norm is not None
            clip = modules[end] if end < len(modules) and isinstance(modules[end], _CLIPS) else None
            end += clip is not None
            after = Affine.of(*self.ranges[end])
            self.stages.append(self._weighted(name, module, norm, clip, after, i))
            self.now = after
            return end
        if isinstance(module, _NORMS):
            raise unsupported(name, "does not follow a convolution or linear layer", _KNOWN)
        if isinstance(module, _CLIPS):
            self.stages.append(Clip(*_bounds(module, self.now)))
        elif isinstance(module, nn.Flatten):
            if (module.start_dim, module.end_dim) != (1, -1):
                raise unsupported(name, "flattens other dimensions than all but the first")
            self.stages.append(Flatten())
        elif not isinstance(module, _NOTHING):
            self._pool(name, module, i)
        return i + 1

    def _pool(self, name: str, module: nn.Module, i: int) -> None:
        if len(self.shapes[i]) != 3:
            raise unsupported(name, f"pools {list(self.shapes[i])}, no images", "give images")
        add = next(add for kind, add in _POOLS.items() if isinstance(module, kind))
        folding = Folding({}, {}, lambda m: None, self.shapes[i], step=cast(Any, 1), largest=TOP)
        add(folding, name, module)
        self.stages += [stage for stage in folding.stages if isinstance(stage, MaxPool | SumPool)]

    def _weighted(
        self,
        name: str,
        layer: nn.Conv2d | nn.Linear,
        norm: nn.Module | None,
        clip: nn.Module | None,
        after: Affine,
        i: int,
    ) -> Weighted:
        integers, scales = _integers(name, layer)
        bias = torch.zeros(len(integers)) if layer.bias is None else layer.bias
        shift = bias.detach().double().cpu().numpy()
        if norm is not None:
            factor, shift = _folded(name, norm, shift)
            integers = integers * (factor != 0).reshape(-1, *[1] * (integers.ndim - 1))
            scales = scales * np.where(factor == 0, 1.0, factor)
        sums = np.abs(integers).reshape(len(integers), -1).sum(1) * max(self.now.zero, TOP - self.now.zero)
        for lift in range(_LIFT, -1, -1):
            unit = self.now.scale * scales / 2**lift
            biases = np.rint(shift / unit)
            beyond = sums * 2**lift + np.abs(biases) >= _INT32
            if not beyond.any():
                break
        else:
            problem = f"has sums or a bias beyond 32 bits in channel {int(beyond.argmax())}"
            raise unsupported(name, problem, "its weights are too small beside its bias: train it again")
        multiplier = Multiplier.of([float(u / after.scale) for u in unit])
        low, high = (0, TOP) if clip is None else _bounds(clip, after)
        form = self._sums(name, layer, integers, int(sums.max()), i)
        return Weighted(form, lift, biases.astype(np.int64), multiplier, self.now, after, low, high)

    def _sums(
        self, name: str, layer: nn.Conv2d | nn.Linear, integers: np.ndarray[Any, Any], reach: int, i: int
    ) -> Convolution | Linear:
        if isinstance(layer, nn.Linear):
            if len(self.shapes[i]) != 1:
                raise unsupported(name, "is a linear layer on images", "put a Flatten before it")
            return Linear(name, integers, (), reach)
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise unsupported(name, "has a padding other than a fixed number of zeros")
        stride, padding, dilation = pair(layer.stride), pair(layer.padding), pair(layer.dilation)
        return Convolution(name, integers, (), reach, stride, padding, dilation, layer.groups)


def _integers(name: str, layer: nn.Module) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Integer weights of a layer and the scale of each output channel: those of its levels, or of 8 bits."""
    w = cast(torch.Tensor, layer.weight).detach()
    note = getattr(layer, "quantization", None)
    if note is None:
        largest = w.double().abs().flatten(1).amax(1).cpu().numpy()
        scales = np.where(largest > 0, largest, 1.0) / _LARGEST
        return np.rint(w.double().cpu().numpy() / scales.reshape(-1, *[1] * (w.dim() - 1))).astype(np.int64), scales
    folding = Folding(
        {weight_key(name): w}, {name: (LevelSet(note["levels"]), note["scale"])}, lambda m: None, (), cast(Any, 1)
    )
    integers, steps, _ = folding.weight(name)
    return integers, np.array([float(s) for s in steps])


def _folded(
    name: str, norm: nn.Module, bias: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The factor of each channel of a normalization in eval mode, and the bias with it."""
    found: Tensors = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}
    if "running_mean" not in found:
        raise unsupported(name, "is followed by a normalization without running statistics", "set track_running_stats")
    ours = {key: t.detach().double().cpu().numpy() for key, t in found.items()}
    factor = ours.get("weight", 1.0) / np.sqrt(ours["running_var"] + cast(Any, norm).eps)
    return factor, (bias - ours["running_mean"]) * factor + ours.get("bias", 0.0)


def _bounds(clip: nn.Module, after: Affine) -> tuple[int, int]:
    """The codes to which an activation clips."""
    low, high = (clip.min_val, clip.max_val) if isinstance(clip, nn.Hardtanh) else (0.0, math.inf)
    ends = (min(max(end / after.scale + after.zero, 0), TOP) for end in (low, high))
    return cast(tuple[int, int], tuple(round(end) for end in ends))
