"""The files for CUTIE, an accelerator for ternary networks, and the limits that a network exceeds.

CUTIE computes sums, pools them, and compares strictly: +1 above ``thresh_hi``, -1 below ``thresh_lo``, else 0. So flips
are merged into the weights, ``thresh_hi`` is our threshold minus one, and max pooling after an activation moves before
it. Images are not ternary: the host computes the ternary encoding or, without one, the first layer, and its output is
the input of the accelerator. A linear layer is a convolution with a kernel as large as the feature map. The last layer
outputs its sums, and the host adds the offsets of the logits.

File names are those of quantlib's ``backends/cutie/cutie_export.py``: ``network_l{i}_weights.npy`` int8 [O, I, kh, kw],
``_thresh_lo.npy`` and ``_thresh_hi.npy`` [O], ``_config.json``. We add ``input.npy``, ``network_l{i}_output.npy``
(golden outputs, [N, O, H, W]) and ``limits.json``. Limits: pulp-platform/CUTIE, ``conf/cutie_conf.sv``.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from metasched.deploy import simulator
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
from metasched.io.json_text import json_text

CHANNELS, KERNEL, LAYERS, IMAGE, THRESHOLD_BITS = 96, 3, 8, 64, 11
LIMITS = {"channels": CHANNELS, "kernel": KERNEL, "layers": LAYERS, "image": IMAGE, "threshold_bits": THRESHOLD_BITS}

_RESIDUAL = "a residual branch"


@dataclass
class _Layer:
    """One layer of the accelerator, with the stages that have been added so far."""

    weight: Array
    image: tuple[int, ...]
    config: dict[str, Any]
    output: Array
    thresholds: tuple[Array, Array] | None = None
    problems: list[str] = field(default_factory=list)


def cutie_files(network: IntegerNetwork, golden: Array) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The content of the files by name, and one line for each limit that the network exceeds.

    Args:
        network: the integer network.
        golden: codes of a few images for the golden outputs, int64 [N, C, H, W].
    """
    host, layers = _layers(network, golden)
    problems = [f"layer {i}: {p}" for i, layer in enumerate(layers) for p in layer.problems + _beyond(layer)]
    if not 1 <= len(layers) <= LAYERS:
        problems.append(f"{len(layers)} layers after those of the host, must be 1 to {LAYERS}")
    files = {"input.npy": _npy(host.astype(np.int8))}
    for i, layer in enumerate(layers):
        files[f"network_l{i}_weights.npy"] = _npy(layer.weight.astype(np.int8))
        for key, values in zip(("lo", "hi"), layer.thresholds or (), strict=False):
            files[f"network_l{i}_thresh_{key}.npy"] = _npy(values)
        files[f"network_l{i}_config.json"] = (json_text(layer.config, indent=1) + "\n").encode()
        files[f"network_l{i}_output.npy"] = _npy(layer.output)
    limits = {
        "fits": not problems,
        "problems": problems,
        "largest": _largest(layers),
        "limits": LIMITS,
        "host": _on_host(network),
        "comparison": "strict",
    }
    files["limits.json"] = (json_text(limits, indent=1) + "\n").encode()
    return files, tuple(problems)


def _layers(network: IntegerNetwork, golden: Array) -> tuple[Array, list[_Layer]]:
    """The output of the host, and the layers of the accelerator."""
    first = _first(network.stages)
    host, layers, y = golden, list[_Layer](), golden
    for i, (stage, output) in enumerate(zip(network.stages, simulator.outputs(network, golden), strict=True)):
        if i < first:
            host = y = output
            continue
        if isinstance(stage, Convolution | Linear):
            layers.append(_layer(stage, y))
        elif layers:
            _read(layers[-1], stage)
        if not isinstance(stage, Flatten):  # a linear layer reads the feature map before flattening
            y = output
        if layers and not isinstance(stage, Logits | Flatten):
            layers[-1].output = output
    return host, layers


def _on_host(network: IntegerNetwork) -> str:
    return "encoding" if isinstance(network.stages[0], Encoding) else network.weighted[0].name


def _first(stages: tuple[Stage, ...]) -> int:
    """Index of the first stage on the accelerator: a weighted layer, or a Flatten directly before it."""
    weighted = [i for i, s in enumerate(stages) if isinstance(s, Convolution | Linear)]
    at = (weighted if isinstance(stages[0], Encoding) else weighted[1:])[:1] or [len(stages)]
    return at[0] - (at[0] < len(stages) and isinstance(stages[at[0] - 1], Flatten))


def _layer(stage: Convolution | Linear, x: Array) -> _Layer:
    image = x.shape[2:] or (1, 1)
    problems = []
    if isinstance(stage, Convolution):
        weight, stride, padding, dilation = stage.weight, stage.stride, stage.padding, stage.dilation
        if stage.groups > 1:
            problems.append("groups of channels")
    else:
        weight = stage.weight.reshape(len(stage.weight), -1, *image)
        stride, padding, dilation = (1, 1), (0, 0), (1, 1)
        if not stage.on_levels:
            problems.append("weights left in float; set quantize.last")
    config = {
        "conv_type": "2d",
        "conv_k": weight.shape[2:],
        "conv_stride": stride,
        "conv_padding": padding,
        "conv_in_ch": weight.shape[1],
        "conv_out_ch": weight.shape[0],
        "dilation": dilation,
        "pooling": False,
    }
    return _Layer(weight, image, config, x, problems=problems)


def _read(layer: _Layer, stage: Stage) -> None:
    """Adds a stage that follows the sums of a layer."""
    config = layer.config
    if isinstance(stage, Flip):
        if config["pooling"] and config["pool_type"] == "max" and -1 in stage.sign:
            layer.problems.append("max pooling before a normalization of negative gamma")
        layer.weight = layer.weight * stage.sign[:, None, None, None]
    elif isinstance(stage, MaxPool | SumPool):
        if config["pooling"] or (isinstance(stage, SumPool) and layer.thresholds is not None):
            layer.problems.append("a pooling that is not between the sums and the thresholds")
        maximum = isinstance(stage, MaxPool)
        kernel = stage.kernel if maximum else tuple(m.shape[1] // len(m) for m in (stage.rows, stage.columns))
        if maximum and (stage.stride != stage.kernel or stage.padding != (0, 0)):
            layer.problems.append("pooling windows that overlap or are padded")
        config |= {"pooling": True, "pool_type": "max" if maximum else "avg", "pool_k": kernel}
        if not maximum and not _is_even(stage):
            layer.problems.append("average pooling over windows of different sizes")
    elif isinstance(stage, Branch | Add | PadChannels):
        if _RESIDUAL not in layer.problems:
            layer.problems.append(_RESIDUAL)
    elif isinstance(stage, Thresholds):
        if stage.levels not in ((-1, 0, 1), (-1, 1)):
            layer.problems.append(f"activations on the levels {stage.levels}")
        layer.thresholds = stage.values[:, 0], stage.values[:, -1] - 1


def _is_even(stage: SumPool) -> bool:
    return all(
        m.shape[1] % len(m) == 0 and np.array_equal(m, np.repeat(np.eye(len(m)), m.shape[1] // len(m), axis=1))
        for m in (stage.rows, stage.columns)
    )


def _beyond(layer: _Layer) -> list[str]:
    """The limits that one layer exceeds."""
    outputs, inputs, *kernel = layer.weight.shape
    problems = []
    if max(outputs, inputs) > CHANNELS:
        problems.append(f"{inputs} to {outputs} channels, at most {CHANNELS}")
    if max(kernel) > KERNEL or kernel[0] != kernel[1]:
        problems.append(f"a {kernel[0]}x{kernel[1]} kernel, at most {KERNEL}x{KERNEL} and square")
    if max(layer.image) > IMAGE:
        problems.append(f"images of {layer.image[0]}x{layer.image[1]}, at most {IMAGE}x{IMAGE}")
    if layer.config["dilation"] != (1, 1):
        problems.append("a dilated kernel")
    if np.abs(layer.weight).max() > 1:
        problems.append("weights that are not ternary")
    if (bits := _threshold_bits(layer)) > THRESHOLD_BITS:
        problems.append(f"thresholds of {bits} bits with the sign, at most {THRESHOLD_BITS}")
    return problems


def _threshold_bits(layer: _Layer) -> int:
    """Bits of the widest threshold in two's complement; 0 without thresholds."""
    return max((int(t if t >= 0 else ~t).bit_length() + 1 for ts in layer.thresholds or () for t in ts), default=0)


def _largest(layers: list[_Layer]) -> dict[str, int]:
    """The largest value in the network of each limited quantity."""
    return {
        "channels": max((max(layer.weight.shape[:2]) for layer in layers), default=0),
        "kernel": max((max(layer.weight.shape[2:]) for layer in layers), default=0),
        "layers": len(layers),
        "image": max((max(layer.image) for layer in layers), default=0),
        "threshold_bits": max(map(_threshold_bits, layers), default=0),
    }


def _npy(values: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()
