"""Exports the integer network to ONNX with low-bit storage, and runs it with onnxruntime.

Weights are INT2, INT4 or INT8 initializers behind DequantizeLinear of scale 1 (opset 25, IR version 13). All tensors
contain integers that float32 represents exactly, up to 2^24; residual sums in fixed point and class scores are integers
that float64 represents exactly. So the outputs equal those of the simulator bit for bit, in any order of summation.

Linear layers are Gemm nodes. onnxruntime replaces DequantizeLinear and MatMul by one kernel, with 8-bit activations by
default; for INT2 weights with a single scale, the result of that kernel varies between calls (1.31.1). It does not
replace Gemm, so that the file has the same outputs in any session.

Requires the extra ``deploy``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from metasched.core.errors import MetaschedError
from metasched.deploy.packing import pack_bits, storage_bits
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
from metasched.io.atomic import write_atomic
from metasched.io.reading import read_regular

if TYPE_CHECKING:
    import onnx
    import onnxruntime

OPSET, IR = 25, 13  # the first with INT2
PRODUCER = "metasched"
_QONNX, _QONNX_OPSET, _QONNX_IR = "qonnx.custom_op.general", 16, 8
_EXACT = 2**24  # largest integer up to which float32 is exact
_MAX_BYTES = 2**30  # largest size of a file


def onnx_model(network: IntegerNetwork, *, all_outputs: bool = False, qonnx: bool = False) -> onnx.ModelProto:
    """The ONNX model, with input ``images`` [N, C, H, W] float32 and output ``logits`` [N, K] int64.

    Args:
        network: result of ``integer_of``.
        all_outputs: adds the output of each stage, ``stage0``, ``stage1``, ..., as golden outputs.
        qonnx: stores weights as float32 behind the nodes Quant and BipolarQuant of QONNX; see ``run_qonnx``.

    Raises:
        MetaschedError: sums of a layer can exceed the exact range of float32, or the extra is not installed.
    """
    onnx = _onnx()
    graph = _Graph(onnx, qonnx, network.image)
    inverse = graph.constant(np.float32(1 / network.step))
    low, high = graph.constant(np.float32(-128)), graph.constant(np.float32(127))
    x = graph.node("Clip", [graph.node("Round", [graph.node("Mul", ["images", inverse])]), low, high])
    graph.staged.append((x, False))
    for stage in network.stages:
        x = _STAGES[type(stage)](graph, stage, x)
        graph.staged.append((x, graph.flat))
    graph.nodes.append(onnx.helper.make_node("Identity", [x], ["logits"]))
    info, batch = onnx.helper.make_tensor_value_info, "batch"
    float32, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    outputs = [info("logits", int64, [batch, len(_logits(network).offset)])]
    if all_outputs:
        for i, (name, flat) in enumerate(graph.staged[1:]):
            graph.nodes.append(onnx.helper.make_node("Cast", [name], [f"stage{i}"], to=int64))
            outputs.append(info(f"stage{i}", int64, [None] * (2 if flat else 4)))
    made = onnx.helper.make_graph(
        graph.nodes, PRODUCER, [info("images", float32, [batch, *network.image])], outputs, graph.tensors
    )
    imports = [("", _QONNX_OPSET), (_QONNX, 1)] if qonnx else [("", OPSET)]
    opsets = [onnx.helper.make_opsetid(domain, number) for domain, number in imports]
    model = onnx.helper.make_model(
        made, producer_name=PRODUCER, opset_imports=opsets, ir_version=_QONNX_IR if qonnx else IR
    )
    units = {"input_step": repr(float(network.step)), "logit_step": repr(float(_logits(network).step))}
    onnx.helper.set_model_props(model, units)
    onnx.checker.check_model(model, full_check=not qonnx)  # the checker does not know the nodes of QONNX
    return model


def write_onnx(path: str | Path, network: IntegerNetwork) -> None:
    """Writes the model atomically."""
    write_atomic(path, onnx_model(network).SerializeToString())


def session(model: onnx.ModelProto | str | os.PathLike[str]) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU, with exact arithmetic, for a model or the path of a file.

    Raises:
        MetaschedError: the file cannot be read or is not a model, or the extra is not installed.
    """
    _onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised instead of logged
    named = isinstance(model, str | os.PathLike)
    data = read_regular(model, _MAX_BYTES, "give an ONNX file") if named else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the error classes of onnxruntime have no other common base
        why = str(error).partition("\n")[0]
        where = str(model) if named else "model"
        raise MetaschedError(
            where, f"is not an ONNX model that onnxruntime can run ({why})", "export it again"
        ) from None


def run_onnx(session: onnxruntime.InferenceSession, images: npt.ArrayLike) -> list[Array]:
    """All outputs, ``logits`` [N, K] first, for images [N, C, H, W]."""
    found = session.run(None, {"images": np.asarray(images, np.float32)})
    return [np.asarray(y) for y in found]


def run_qonnx(model: onnx.ModelProto, images: npt.ArrayLike) -> list[Array]:
    """All outputs of a QONNX model, ``logits`` [N, K] first, for images [N, C, H, W]; uses the executor of qonnx."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    x = np.asarray(images, np.float32)
    wrapped = ModelWrapper(model, make_deepcopy=True)
    for value in (*wrapped.graph.input, *wrapped.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = len(x)  # the executor needs all shapes
    found = execute_onnx(wrapped.transform(InferShapes()), {"images": x})
    return [np.asarray(found[output.name]) for output in model.graph.output]


def installed() -> bool:
    """Whether the extra ``deploy`` is installed."""
    return all(find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def qonnx_installed() -> bool:
    """Whether the package qonnx is installed."""
    return find_spec("qonnx") is not None


def _onnx() -> Any:
    if not installed():
        problem = "onnx and onnxruntime are not installed"
        raise MetaschedError("deploy", problem, "pip install 'metasched[deploy]'")
    import onnx

    return onnx


def _logits(network: IntegerNetwork) -> Logits:
    last = network.stages[-1]
    assert isinstance(last, Logits)
    return last


class _Graph:
    """Nodes and initializers with unique names."""

    def __init__(self, onnx: Any, qonnx: bool, image: tuple[int, int, int]) -> None:
        self.onnx = onnx
        self.qonnx = qonnx
        self.image = image
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.flat = False  # [N, C] and not [N, C, H, W]
        self.staged: list[tuple[str, bool]] = []  # the codes and the output of each stage, and whether it is flat
        self.double = set[str]()  # tensors of float64

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"y{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, values: Any) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(self.onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def per_channel(self, values: npt.NDArray[Any], x: str = "") -> str:
        """Values [C] in the type of a tensor."""
        values = values.astype(np.float64 if x in self.double else np.float32)
        return self.constant(values if self.flat else values[:, None, None])

    def weight(self, name: str, values: Array) -> str:
        if self.qonnx:
            return self._quant(name, values)
        bits = storage_bits(values)
        kind = getattr(self.onnx.TensorProto, f"INT{bits}")
        self.tensors.append(
            self.onnx.helper.make_tensor(f"{name}.weight", kind, values.shape, pack_bits(values, bits), raw=True)
        )
        return self.node("DequantizeLinear", [f"{name}.weight", self.constant(np.float32(1))])

    def _quant(self, name: str, values: Array) -> str:
        self.tensors.append(self.onnx.numpy_helper.from_array(values.astype(np.float32), f"{name}.weight"))
        one, zero = self.constant(np.float32(1)), self.constant(np.float32(0))
        if set(np.unique(values)) == {-1, 1}:
            return self.node("BipolarQuant", [f"{name}.weight", one], domain=_QONNX)
        largest = int(max(-values.min(), values.max()))
        bits = max(
            2, largest.bit_length() + 1
        )  # with sign and without the lowest integer (narrow); 1 bit would be bipolar
        width = self.constant(np.float32(bits))
        inputs = [f"{name}.weight", one, zero, width]
        return self.node("Quant", inputs, domain=_QONNX, signed=1, narrow=1, rounding_mode="ROUND")

    def cast(self, x: str, kind: str) -> str:
        return self.node("Cast", [x], to=getattr(self.onnx.TensorProto, kind))


def _check_reach(stage: Convolution | Linear | SumPool) -> None:
    if stage.reach > _EXACT:
        problem = f"has sums of up to {stage.reach}, which float32 cannot represent exactly (at most 2^24)"
        raise MetaschedError(f"model.{stage.name}", problem, "use fewer inputs or fewer bits")


def _encoding(graph: _Graph, stage: Encoding, x: str) -> str:
    wide = graph.node("Unsqueeze", [x, graph.constant(np.array([1]))])
    low, high = (graph.constant(t.astype(np.float32).reshape(-1, 1, 1, 1)) for t in (stage.low, stage.high))
    above = graph.cast(graph.node("GreaterOrEqual", [wide, high]), "FLOAT")
    below = graph.cast(graph.node("Less", [wide, low]), "FLOAT")
    channels, height, width = graph.image
    shape = graph.constant(np.array([0, len(stage.low) * channels, height, width]))  # 0 keeps the size of the batch
    return graph.node("Reshape", [graph.node("Sub", [above, below]), shape])


def _convolution(graph: _Graph, stage: Convolution, x: str) -> str:
    _check_reach(stage)
    (ph, pw), kernel = stage.padding, stage.weight.shape[2:]
    return graph.node(
        "Conv",
        [x, graph.weight(stage.name, stage.weight)],
        kernel_shape=kernel,
        strides=stage.stride,
        pads=[ph, pw, ph, pw],
        dilations=stage.dilation,
        group=stage.groups,
    )


def _linear(graph: _Graph, stage: Linear, x: str) -> str:
    if stage.on_levels:
        _check_reach(stage)
        return graph.node("Gemm", [x, graph.weight(stage.name, stage.weight)], transB=1)
    weight = graph.constant(stage.weight.T.astype(np.float32))  # 24 bits: exact
    return graph.node("MatMul", [graph.cast(x, "DOUBLE"), graph.cast(weight, "DOUBLE")])


def _max_pool(graph: _Graph, stage: MaxPool, x: str) -> str:
    (ph, pw), (kernel, strides) = stage.padding, (stage.kernel, stage.stride)
    pooled = graph.node("MaxPool", [x], kernel_shape=kernel, strides=strides, pads=[ph, pw, ph, pw])
    if x in graph.double:
        graph.double.add(pooled)
    return pooled


def _sum_pool(graph: _Graph, stage: SumPool, x: str) -> str:
    double = x in graph.double
    if not double:
        _check_reach(stage)
    kind = np.float64 if double else np.float32
    rows, columns = (graph.constant(m.astype(kind)) for m in (stage.rows, stage.columns.T))
    pooled = graph.node("MatMul", [graph.node("MatMul", [rows, x]), columns])
    if double:
        graph.double.add(pooled)
    return pooled


def _branch(graph: _Graph, stage: Branch, x: str) -> str:
    x, graph.flat = graph.staged[stage.source + 1]
    return x


def _add(graph: _Graph, stage: Add, x: str) -> str:
    pair = [x, graph.staged[stage.source + 1][0]]
    if stage.reach > _EXACT:
        pair = [graph.cast(y, "DOUBLE") for y in pair]
        graph.double |= {*pair}
    scaled = [
        graph.node("Mul", [y, graph.per_channel(m, y)]) for y, m in zip(pair, (stage.ours, stage.theirs), strict=True)
    ]
    total = graph.node("Add", scaled)
    if stage.reach > _EXACT:
        graph.double.add(total)
    return total


def _pad_channels(graph: _Graph, stage: PadChannels, x: str) -> str:
    return graph.node("Pad", [x, graph.constant(np.array([0, stage.before, 0, 0, 0, stage.after, 0, 0]))])


def _flip(graph: _Graph, stage: Flip, x: str) -> str:
    return graph.node("Mul", [x, graph.per_channel(stage.sign)])


def _thresholds(graph: _Graph, stage: Thresholds, x: str) -> str:
    total = None
    for t, low, high in zip(stage.values.T, stage.levels, stage.levels[1:], strict=False):
        passed = graph.cast(graph.node("GreaterOrEqual", [x, graph.per_channel(t, x)]), "FLOAT")
        if high - low != 1:
            passed = graph.node("Mul", [passed, graph.constant(np.float32(high - low))])
        total = passed if total is None else graph.node("Add", [total, passed])
    assert total is not None
    return graph.node("Add", [total, graph.constant(np.float32(stage.levels[0]))])


def _flatten(graph: _Graph, stage: Flatten, x: str) -> str:
    graph.flat = True
    return graph.node("Flatten", [x], axis=1)


def _scores(graph: _Graph, stage: Logits, x: str) -> str:
    scaled = graph.node("Mul", [graph.cast(x, "DOUBLE"), graph.constant(stage.multiplier.astype(np.float64))])
    return graph.cast(graph.node("Add", [scaled, graph.constant(stage.offset.astype(np.float64))]), "INT64")


_STAGES: dict[type[Stage], Any] = {
    Encoding: _encoding,
    Convolution: _convolution,
    Linear: _linear,
    MaxPool: _max_pool,
    SumPool: _sum_pool,
    Branch: _branch,
    Add: _add,
    PadChannels: _pad_channels,
    Flip: _flip,
    Thresholds: _thresholds,
    Flatten: _flatten,
    Logits: _scores,
}
