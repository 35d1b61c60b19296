"""Checks that the stages of an integer network fit together: sizes, order, and sums within the range of doubles."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from metasched.core.errors import MetaschedError
from metasched.deploy.stages import (
    Add,
    Array,
    Branch,
    Convolution,
    Encoding,
    Flatten,
    Flip,
    IntegerNetwork,
    Linear,
    Logits,
    MaxPool,
    PadChannels,
    Stage,
    SumPool,
    Thresholds,
)

LARGEST_IMAGE = 2**24  # elements of one tensor for one image
_EXACT = 2**53
_CODES = 128


class Flow(NamedTuple):
    """The tensor between two stages: its shape for one image, and its largest absolute value."""

    shape: tuple[int, ...]
    largest: int


class _Misfit(Exception):
    """A field that does not fit, and the reason."""


def check_shapes(network: IntegerNetwork) -> None:
    """Checks that each stage fits the one before it.

    Raises:
        MetaschedError: a stage does not fit; the message names the field.
    """
    if not network.stages or not isinstance(network.stages[-1], Logits):
        raise MetaschedError("stages", "do not end with logits", "export the network again")
    flow = Flow(network.image, _CODES)
    flows = [flow]
    if min(network.image) < 1 or math.prod(network.image) > LARGEST_IMAGE:
        raise MetaschedError("image", f"must have 1 to {LARGEST_IMAGE} elements, got {network.image}", "correct it")
    for i, stage in enumerate(network.stages):
        try:
            _require(isinstance(stage, Logits) == (i == len(network.stages) - 1), "stage", "is logits before the end")
            _require(i == 0 or not isinstance(stage, Encoding), "stage", "is an encoding, but not the first stage")
            flow = _after(stage, flow, flows)
            flows.append(flow)
            sized = min(flow.shape) >= 1 and math.prod(flow.shape) <= LARGEST_IMAGE
            _require(sized, "stage", f"has an output of {'x'.join(map(str, flow.shape))}, too large")
            _require(flow.largest < _EXACT, "stage", "has integers that doubles cannot represent exactly")
        except _Misfit as misfit:
            field, why = misfit.args
            raise MetaschedError(f"stages[{i}].{field}", why, "export the network again") from None


def _require(holds: bool, field: str, why: str) -> None:
    if not holds:
        raise _Misfit(field, why)


def _after(stage: Stage, flow: Flow, flows: list[Flow]) -> Flow:
    channels, *size = flow.shape
    flat = isinstance(stage, Linear | Logits)
    either = isinstance(stage, Flip | Thresholds | Flatten | Branch | Add)
    _require(either or flat == (not size), "stage", "is for images" if not flat else "is for vectors")
    match stage:
        case Encoding(low=low, high=high):
            _require(len(low) == len(high) and bool((low <= high).all()), "low", "must not be above high")
            return Flow((len(low) * channels, *size), 1)
        case Convolution():
            return _convolved(stage, flow)
        case Linear(weight=weight):
            _require(weight.shape[1:] == flow.shape, "weight", f"is for {weight.shape[1]} inputs, not {channels}")
            return Flow((len(weight),), _reach(stage, flow))
        case MaxPool(kernel=kernel, stride=stride, padding=padding):
            half = all(2 * p <= k for p, k in zip(padding, kernel, strict=True))
            _require(half, "padding", "exceeds half the kernel")
            return Flow((channels, *_windows(size, kernel, stride, padding)), flow.largest)
        case SumPool(rows=rows, columns=columns, reach=reach):
            for field, m, n in (("rows", rows, size[0]), ("columns", columns, size[1])):
                even = bool((m >= 0).all()) and len(set(m.sum(1).tolist())) == 1
                _require(even and m.shape[1] == n, field, f"must be windows of equal sums over {n} places")
            largest = flow.largest * int(rows[0].sum()) * int(columns[0].sum())
            _require(reach == largest, "reach", f"must be {largest}, got {reach}")
            return Flow((channels, len(rows), len(columns)), largest)
        case Branch(source=source):
            return _earlier(source, flows)
        case Add(source=source, ours=ours, theirs=theirs, reach=reach):
            other = _earlier(source, flows)
            _require(other.shape == flow.shape, "source", f"puts out {other.shape}, not {flow.shape}")
            fit = len(ours) == len(theirs) == channels
            _require(fit, "ours", f"must, as theirs, be one for each of {channels} channels")
            pairs = zip(ours.tolist(), theirs.tolist(), strict=True)
            largest = max(abs(a) * flow.largest + abs(b) * other.largest for a, b in pairs)
            _require(reach == largest, "reach", f"must be {largest}, got {reach}")
            return Flow(flow.shape, largest)
        case PadChannels(before=before, after=after):
            _require(0 <= min(before, after) and max(before, after) <= LARGEST_IMAGE, "before", "must not be negative")
            return Flow((before + channels + after, *size), flow.largest)
        case Flip(sign=sign):
            _require(len(sign) == channels and bool((np.abs(sign) == 1).all()), "sign", f"must be {channels} signs")
            return flow
        case Thresholds(values=values, levels=levels):
            _require(list(levels) == sorted(set(levels)), "levels", "must rise")
            fit = values.shape == (channels, len(levels) - 1) and bool((values[:, 1:] >= values[:, :-1]).all())
            _require(fit, "values", f"must be {len(levels) - 1} for each of {channels} channels, and not fall")
            return Flow(flow.shape, max(map(abs, levels)))
        case Flatten():
            return Flow((math.prod(flow.shape),), flow.largest)
        case Logits(multiplier=multiplier, offset=offset):
            fit = len(multiplier) == len(offset) == channels
            _require(fit, "multiplier", f"must, as the offsets, be one for each of {channels} scores")
            return Flow(flow.shape, _top(multiplier) * flow.largest + _top(offset))


def _earlier(source: int, flows: list[Flow]) -> Flow:
    _require(-1 <= source < len(flows) - 1, "source", f"must be from -1 to {len(flows) - 2}, got {source}")
    return flows[source + 1]


def _convolved(stage: Convolution, flow: Flow) -> Flow:
    weight, (channels, *size) = stage.weight, flow.shape
    _require(weight.ndim == 4, "weight", "must have four dimensions")
    _require(stage.groups >= 1 and len(weight) % stage.groups == 0, "groups", "do not divide the outputs")
    inputs = weight.shape[1] * stage.groups
    _require(inputs == channels, "weight", f"is for {inputs} channels, not {channels}")
    _require(min(stage.dilation) >= 1, "dilation", "must be at least 1")
    kernel = tuple(d * (k - 1) + 1 for d, k in zip(stage.dilation, weight.shape[2:], strict=True))
    return Flow((len(weight), *_windows(size, kernel, stage.stride, stage.padding)), _reach(stage, flow))


def _windows(size: list[int], kernel: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]) -> list[int]:
    _require(min(stride) >= 1, "stride", "must be at least 1")
    _require(0 <= min(padding) and max(padding) <= max(kernel), "padding", "must be from 0 to the size of the kernel")
    _require(min(kernel) >= 1, "kernel", "must be at least 1")
    return [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)]


def _reach(stage: Convolution | Linear, flow: Flow) -> int:
    _require(len(stage.steps) == len(stage.weight), "steps", f"must be one, or {len(stage.weight)}")
    total = np.abs(stage.weight).reshape(len(stage.weight), -1).sum(1).max()
    largest = max(1, int(total) * flow.largest)
    _require(stage.reach == largest, "reach", f"must be {largest}, got {stage.reach}")
    return largest


def _top(values: Array) -> int:
    return max(abs(int(v)) for v in values)
