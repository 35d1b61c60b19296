"""The files of a deployed network; all of them are written, or none.

network.json   every stage with its thresholds and steps, and the place of its weights in weights.bin
weights.bin    packed weights, layer after layer: 2, 4 or 8 bits each, or 32 for a layer in fixed point
weights.trits  the weights of the ternary layers again, five trits per byte
golden.npz     codes of a few test images, and the output of each stage for them
account.json   the size of each layer, and the agreement of the runtimes
network.onnx   with the extra ``deploy``
cutie/         the files of an accelerator, see cutie.py
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from metasched.core.errors import MetaschedError
from metasched.deploy import simulator
from metasched.deploy.packing import account, compression, pack_trits, packed
from metasched.deploy.stages import Array, Convolution, IntegerNetwork, Linear, Stage
from metasched.io.atomic import write_atomic
from metasched.io.json_text import json_text

FORMAT = 1


def network_files(network: IntegerNetwork, golden: Array, report: Mapping[str, Any]) -> dict[str, bytes]:
    """The content of the files by name, without ONNX and CUTIE.

    Args:
        network: the integer network.
        golden: codes of a few images, int64 [N, C, H, W].
        report: additional entries of ``account.json``.
    """
    sizes = account(network)
    seen = {f"stage{i}": y for i, y in enumerate(simulator.outputs(network, golden))}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, codes=golden, **seen)  # pyright: ignore[reportArgumentType]
    stages, offset = [], 0
    for stage in network.stages:
        record = _record(stage)
        if isinstance(stage, Convolution | Linear):
            size = next(s for s in sizes if s.name == stage.name)
            record["weight"] = {"shape": stage.weight.shape, "bits": size.bits, "offset": offset, "bytes": size.packed}
            offset += size.packed
        stages.append(record)
    whole = {"format": FORMAT, "image": network.image, "step": _number(network.step), "stages": stages}
    ternary = [layer for layer, size in zip(network.weighted, sizes, strict=True) if size.trits is not None]
    counted = {"layers": [asdict(s) for s in sizes], "compression": compression(sizes), **report}
    return {
        "network.json": (json_text(whole, indent=1) + "\n").encode(),
        "weights.bin": b"".join(packed(layer) for layer in network.weighted),
        "weights.trits": b"".join(pack_trits(layer.weight) for layer in ternary),
        "golden.npz": buffer.getvalue(),
        "account.json": (json_text(counted, indent=2) + "\n").encode(),
    }


def _record(stage: Stage) -> dict[str, Any]:
    values = {f.name: getattr(stage, f.name) for f in fields(stage)}
    return {"stage": type(stage).__name__.lower(), **{k: _plain(v) for k, v in values.items() if k != "weight"}}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple) and value and isinstance(value[0], Fraction):
        return [_number(v) for v in value] if len(set(value)) > 1 else _number(value[0])
    return _number(value) if isinstance(value, Fraction) else value


def _number(value: Fraction) -> str:
    return str(value)  # numerator/denominator: exact


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Creates a folder with these files atomically: after a failure or crash there is no partial folder.

    Raises:
        MetaschedError: the path exists, or the folder cannot be written.
    """
    check_new(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            temporary.mkdir(parents=True)
            for name, data in files.items():
                (temporary / name).parent.mkdir(exist_ok=True)
                write_atomic(temporary / name, data)
            os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise MetaschedError(str(path), f"cannot be written ({error.strerror})", "give another folder") from error


def check_new(path: Path) -> None:
    """Raises MetaschedError if the path of a new folder exists."""
    if os.path.lexists(path):
        raise MetaschedError(str(path), "already exists", "give a new folder with -o")
