"""Runs the integer network in integer arithmetic; the oracle of all exports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

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

_LOWEST = np.iinfo(np.int64).min


def run(network: IntegerNetwork, codes: Array) -> Array:
    """Logits, int64 [N, K], for codes, int64 [N, C, H, W]."""
    *_, logits = outputs(network, codes)
    return logits


def outputs(network: IntegerNetwork, codes: Array) -> Iterator[Array]:
    """The output of each stage, int64 [N, ...], for codes, int64 [N, C, H, W]."""
    y, again = codes, {s.source for s in network.stages if isinstance(s, Branch | Add)}
    seen: list[Array | None] = [codes]
    for i, stage in enumerate(network.stages):
        y = apply(stage, y, seen)
        seen.append(y if i in again else None)
        yield y


def apply(stage: Stage, y: Array, seen: Sequence[Array | None] = ()) -> Array:
    """Applies one stage to a batch, int64 [N, ...]; ``seen`` has the codes and the outputs that are read again."""
    match stage:
        case Encoding():
            return _encode(stage, y)
        case Convolution():
            return _convolve(stage, y)
        case Linear():
            return _product(stage.weight, y.T, stage.reach).T
        case MaxPool():
            return _max_pool(stage, y)
        case SumPool():
            return stage.rows @ y @ stage.columns.T
        case Branch():
            return _earlier(seen, stage.source)
        case Add():
            z = _earlier(seen, stage.source)
            return _per_channel(stage.ours, y) * y + _per_channel(stage.theirs, z) * z
        case PadChannels():
            return np.pad(y, ((0, 0), (stage.before, stage.after), (0, 0), (0, 0)))
        case Flip():
            return _per_channel(stage.sign, y) * y
        case Thresholds():
            index = sum((y >= _per_channel(t, y)).astype(np.int64) for t in stage.values.T)
            return np.array(stage.levels)[index]
        case Flatten():
            return y.reshape(len(y), -1)
        case Logits():
            return stage.multiplier * y + stage.offset


def _encode(stage: Encoding, y: Array) -> Array:
    n, channels, height, width = y.shape
    low, high = (t.reshape(-1, 1, 1, 1) for t in (stage.low, stage.high))
    trits = (y[:, None] >= high).astype(np.int64) - (y[:, None] < low)
    return trits.reshape(n, len(stage.low) * channels, height, width)


def _earlier(seen: Sequence[Array | None], source: int) -> Array:
    found = seen[source + 1]
    assert found is not None, source
    return found


def _per_channel(values: Array, y: Array) -> Array:
    return values.reshape(-1, *[1] * (y.ndim - 2))


def _product(a: Array, b: Array, reach: int) -> Array:
    """The integer matrix product, computed by BLAS in doubles, which are exact for partial sums below 2^53."""
    assert reach < 2**53, reach
    return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int64)


def _convolve(stage: Convolution, y: Array) -> Array:
    n, groups = len(y), stage.groups
    out_channels, _, kh, kw = stage.weight.shape
    (sh, sw), (ph, pw), (dh, dw) = stage.stride, stage.padding, stage.dilation
    y = np.pad(y, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    height, width = (y.shape[2] - dh * (kh - 1) - 1) // sh + 1, (y.shape[3] - dw * (kw - 1) - 1) // sw + 1
    weight = stage.weight.reshape(groups, out_channels // groups, -1, kh, kw)
    total = np.zeros((n, groups, out_channels // groups, height * width), np.int64)
    for i in range(kh):
        for j in range(kw):
            seen = y[:, :, i * dh :: sh, j * dw :: sw][:, :, :height, :width]
            total += _product(weight[..., i, j], seen.reshape(n, groups, -1, height * width), stage.reach)
    return total.reshape(n, out_channels, height, width)


def _max_pool(stage: MaxPool, y: Array) -> Array:
    (kh, kw), (sh, sw), (ph, pw) = stage.kernel, stage.stride, stage.padding
    y = np.pad(y, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=_LOWEST)
    windows = np.lib.stride_tricks.sliding_window_view(y, (kh, kw), axis=(2, 3))
    return windows[:, :, ::sh, ::sw].max(axis=(4, 5))
