from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metasched.core.errors import MetaschedError
from metasched.deploy import simulator
from metasched.deploy.onnx_export import onnx_model, run_onnx, run_qonnx, session, write_onnx
from metasched.deploy.packing import account
from metasched.deploy.stages import IntegerNetwork
from metasched.methods.config import MethodConfig
from metasched.models import build_model

onnx = pytest.importorskip("onnx", reason="optional: deploy")
ort = pytest.importorskip("onnxruntime", reason="optional: deploy")

RNG = np.random.default_rng(0)


def same(integer: IntegerNetwork, images: np.ndarray, found: list[np.ndarray]) -> None:
    logits, *stages = found
    expected = list(simulator.outputs(integer, integer.encode(images)))
    assert np.array_equal(logits, expected[-1]) and logits.dtype == np.int64
    for ours, theirs in zip(expected, stages, strict=True):
        assert np.array_equal(ours, theirs)


def check(integer: IntegerNetwork) -> None:
    images = RNG.normal(0, 2, (5, *integer.image)).astype(np.float32)
    same(integer, images, run_onnx(session(onnx_model(integer, all_outputs=True)), images))


def check_qonnx(integer: IntegerNetwork) -> None:
    pytest.importorskip("qonnx", reason="optional: deploy")
    images = RNG.normal(0, 2, (3, *integer.image)).astype(np.float32)
    same(integer, images, run_qonnx(onnx_model(integer, all_outputs=True, qonnx=True), images))


@given(st.data())
@settings(max_examples=30)
def test_random_networks_agree_with_the_simulator(random_networks: Any, data: st.DataObject) -> None:
    check(data.draw(random_networks).integer())


@pytest.mark.slow
@given(st.data())
@settings(max_examples=200)
def test_many_random_networks_agree_with_the_simulator(random_networks: Any, data: st.DataObject) -> None:
    check(data.draw(random_networks).integer())


@pytest.fixture
def integer(as_trained: Any) -> IntegerNetwork:
    model = build_model("vgg8", (3, 16, 16), num_classes=10, width=4)
    return as_trained(model, MethodConfig(name="ana"), torch.zeros(1, 3, 16, 16), 1).integer()


def test_weights_are_stored_in_two_bits(integer: IntegerNetwork) -> None:
    model = onnx_model(integer)
    tensors = {t.name: t for t in model.graph.initializer}
    for size in account(integer):
        tensor = tensors[f"{size.name}.weight"]
        assert tensor.data_type == onnx.TensorProto.INT2 and len(tensor.raw_data) == size.packed
    assert (model.ir_version, model.opset_import[0].version) == (13, 25)


@pytest.mark.parametrize("levels, bits", [("ternary", 2), ("int3", 4), ("int4", 4), ("int5", 8)])
def test_more_levels_take_more_bits(as_trained: Any, levels: str, bits: int) -> None:
    model = build_model("mlp", (1, 8, 8), num_classes=10, width=16)
    config = MethodConfig(name="ste", levels=levels, scale="max")
    integer = as_trained(model, config, torch.zeros(1, 1, 8, 8), 1).integer()
    kinds = {t.data_type for t in onnx_model(integer).graph.initializer if t.name.endswith(".weight")}
    assert kinds == {getattr(onnx.TensorProto, f"INT{bits}")}


def test_a_session_with_other_options_computes_the_same(integer: IntegerNetwork) -> None:
    images = RNG.normal(0, 2, (20, 3, 16, 16)).astype(np.float32)
    plain = ort.InferenceSession(onnx_model(integer).SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(run_onnx(plain, images)[0], simulator.run(integer, integer.encode(images)))


def test_a_written_file_runs(integer: IntegerNetwork, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    write_onnx(path, integer)
    images = RNG.normal(0, 2, (3, 3, 16, 16)).astype(np.float32)
    assert np.array_equal(run_onnx(session(path), images)[0], simulator.run(integer, integer.encode(images)))
    assert [p.name for p in tmp_path.iterdir()] == ["network.onnx"]


@pytest.mark.parametrize("content", [b"", b"no model", None], ids=["empty", "text", "truncated"])
def test_a_broken_file_is_one_line(integer: IntegerNetwork, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "network.onnx"
    whole = onnx_model(integer).SerializeToString()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(MetaschedError) as error:
        session(path)
    assert "network.onnx: is not an ONNX model" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MetaschedError, match=r"network\.onnx: cannot be read: No such file"):
        session(tmp_path / "network.onnx")


def test_sums_beyond_float32_are_refused(as_trained: Any) -> None:
    model = build_model("mlp", (3, 64, 64), num_classes=2, width=2)
    config = MethodConfig(name="ste", levels="int8", scale="max")
    integer = as_trained(model, config, torch.zeros(1, 3, 64, 64), 1).integer()
    with pytest.raises(MetaschedError, match=r"model\.linear1: has sums of up to .* float32 cannot represent exactly"):
        onnx_model(integer)


@pytest.mark.parametrize(
    "name, levels",
    [
        ("convnet", "ternary"),
        ("cutie", "ternary"),
        ("convnet", "binary"),
        ("convnet", "int4"),
        ("convnet", "balanced3"),
    ],
)
def test_qonnx_agrees(as_trained: Any, name: str, levels: str) -> None:
    pytest.importorskip("qonnx", reason="optional: deploy")
    model = build_model(name, (1, 8, 8), num_classes=10, width=2)
    config = MethodConfig(name="ste", levels=levels, scale="max")
    integer = as_trained(model, config, torch.zeros(1, 1, 8, 8), 1, last=levels == "ternary").integer()
    images = RNG.normal(0, 2, (3, 1, 8, 8)).astype(np.float32)
    made = onnx_model(integer, all_outputs=True, qonnx=True)
    assert {n.op_type for n in made.graph.node} & {"Quant", "BipolarQuant"} == {
        "BipolarQuant" if levels == "binary" else "Quant"
    }
    same(integer, images, run_qonnx(made, images))


def test_qonnx_agrees_where_all_weights_of_a_layer_are_zero(as_trained: Any) -> None:
    model = build_model("mlp", (1, 4, 4), num_classes=3, width=4)
    trained = as_trained(model, MethodConfig(name="ste"), torch.zeros(1, 1, 4, 4), 1)
    trained.params["linear2.weight"].zero_()
    check_qonnx(trained.integer())


@given(st.data())
@settings(max_examples=5)
def test_random_networks_agree_in_qonnx(random_networks: Any, data: st.DataObject) -> None:
    check_qonnx(data.draw(random_networks).integer())


@pytest.mark.slow
@given(st.data())
@settings(max_examples=200)
def test_many_random_networks_agree_in_qonnx(random_networks: Any, data: st.DataObject) -> None:
    check_qonnx(data.draw(random_networks).integer())
