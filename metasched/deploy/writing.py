"""What deployment ends with: all forms of the integer network compared on all images, and the folder written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metasched.core.errors import MetaschedError
from metasched.deploy import simulator
from metasched.deploy.agreement import Agreement, Twin, agreement, runtime_agreement
from metasched.deploy.cutie import cutie_files
from metasched.deploy.files import network_files, write_folder
from metasched.deploy.onnx_export import installed, onnx_model, qonnx_installed, run_onnx, run_qonnx, session
from metasched.deploy.packing import LayerSize, account, compression
from metasched.deploy.stages import Array, IntegerNetwork
from metasched.tracking.console import Console, watched

if TYPE_CHECKING:
    from onnx import ModelProto

_BATCH = 100
_QONNX_BATCH = 1000  # its executor takes its time for each node, however many images there are
_GOLDEN = 4  # images


def write_deployed(
    integer: IntegerNetwork,
    twin: Twin,
    codes: Array,
    labels: Array | None,
    more: Mapping[str, Any],
    folder: Path,
    console: Console,
) -> dict[str, Any]:
    """Compares the integer network with PyTorch and the runtimes, and writes the folder, or nothing.

    Args:
        integer: the integer network.
        twin: the float network on codes, see agreement.py.
        codes: of all images, int64 [N, C, H, W].
        labels: their classes, [N]; None where they are not known.
        more: further entries of the account, written after the score.
        folder: is made.
        console: where the account is shown.

    Returns:
        the score if there are labels, ``more``, the agreement, the compression.

    Raises:
        MetaschedError: a runtime does not agree, or the folder cannot be written.
    """
    model = onnx_model(integer) if installed() else None
    found = _compared(integer, codes, twin, model, console)
    columns = ("with", "images", "integers", "differing", "classes differing")
    console.table("the integer network compared", columns, [(name, *vars(a).values()) for name, a in found.items()])
    for name, one in found.items():
        if not one.complete:
            raise MetaschedError("deploy", f"the integer network and {name} differ: {one}", "report it as a bug")
    result: dict[str, Any] = {}
    if labels is not None:
        logits = np.concatenate([simulator.run(integer, part) for part in _batches(codes)])
        result["score"] = float((logits.argmax(1) == labels).mean())
    result |= {**more, "agreement": {name: asdict(one) for name, one in found.items()}}
    files: dict[str, bytes] = {}
    if model is not None:
        files["network.onnx"] = model.SerializeToString()
        result["onnx_bytes"] = len(files["network.onnx"])
    else:
        console.note(
            "network.onnx is not written: pip install 'metasched[deploy]', or in a clone `uv run --extra deploy "
            "metasched deploy ...`"
        )
    accelerator, problems = cutie_files(integer, codes[:_GOLDEN])
    for line in problems or ("every limit is met",):
        console.note(f"cutie: {line}")
    result["fits_cutie"] = not problems
    files |= {f"cutie/{name}": data for name, data in accelerator.items()}
    write_folder(folder, {**network_files(integer, codes[:_GOLDEN], result), **files})
    sizes = account(integer)
    columns = ("layer", "weights", "bits", "zeros", "entropy", "bytes", "5 in a byte", "float32")
    console.table("weights", columns, [_row(size) for size in sizes])
    return {**result, "compression": compression(sizes)}


def _compared(
    integer: IntegerNetwork, codes: Array, twin: Twin, model: ModelProto | None, console: Console
) -> dict[str, Agreement]:
    """The simulator and whatever else is there to run the network, on all of the codes."""

    def total(name: str, compared: Callable[[Array], Agreement], size: int = _BATCH) -> Agreement:
        parts = map(compared, _batches(codes, size))
        return sum(watched(console, f"images by {name}", parts, len(codes), size), Agreement())

    found = {"PyTorch": total("PyTorch", lambda part: agreement(twin, integer, [part]))}
    if model is not None:
        runtime = partial(run_onnx, session(model))
        found["onnxruntime"] = total("onnxruntime", lambda part: runtime_agreement(runtime, integer, [part]))
        if qonnx_installed():
            nodes = onnx_model(integer, all_outputs=True, qonnx=True)
            executor = partial(run_qonnx, nodes)
            found["qonnx"] = total("qonnx", lambda part: runtime_agreement(executor, integer, [part]), _QONNX_BATCH)
    return found


def _batches(codes: Array, size: int = _BATCH) -> Iterator[Array]:
    for start in range(0, len(codes), size):
        yield codes[start : start + size]


def _row(size: LayerSize) -> tuple[str | float | int, ...]:
    trits = "-" if size.trits is None else size.trits
    return size.name, size.weights, size.bits, size.sparsity, size.entropy, size.packed, trits, size.float32
