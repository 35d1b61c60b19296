"""Integer networks with zero points: against the float network, and against ONNX Runtime's integer convolution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import metasched
from metasched import Recipe
from metasched.core.errors import MetaschedError
from metasched.deploy.affine import Affine, AffineNetwork, Weighted, apply
from metasched.deploy.affine_network import affine_network
from metasched.deploy.stages import Convolution


def network(seed: int = 0) -> nn.Module:
    """Convolutions with strides, padding and groups, gammas of both signs and one 0, poolings, linear layers."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.MaxPool2d(2, 1, 1),
        ),
        *(nn.Conv2d(8, 6, 1), nn.Hardtanh(-1.0, 0.5), nn.AvgPool2d(2), nn.Dropout(), nn.Flatten()),
        *(nn.Linear(24, 16), nn.BatchNorm1d(16, affine=False), nn.ReLU(inplace=True), nn.Linear(16, 5)),
    )
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d):
            m.running_mean = torch.randn(m.num_features)
            m.running_var = torch.rand(m.num_features) + 0.5
            if m.affine:
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)
                m.weight.data[1] = 0.0
    return model.eval()


def images(n: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(seed)) + 0.3


def converted(levels: str, granularity: str = "channel", last: bool = True) -> nn.Module:
    recipe = Recipe("rounding", weights=levels, activations=None, scale="max", granularity=granularity, last=last)
    module, _ = metasched.prepare(network(), recipe, images(), total_steps=4)
    return metasched.convert(module.eval())


def reference(model: Any, found: AffineNetwork, codes: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """For each weighted stage, the codes of the float layer, its normalization and activation, for the same codes.

    The float layer is the model's own, so that folding is put to the test too; in float64.
    """
    children, results = list(model.double()), []
    stages, i = list(found.stages), 0
    for stage in stages:
        if isinstance(stage, Weighted):
            while not isinstance(children[i], nn.Conv2d | nn.Linear):
                i += 1
            group = [children[i]]
            while i + 1 < len(children) and isinstance(
                children[i + 1], nn.BatchNorm2d | nn.BatchNorm1d | nn.ReLU | nn.Hardtanh
            ):
                i += 1
                group.append(children[i])
            with torch.no_grad():
                y = nn.Sequential(*group)(torch.from_numpy(stage.before.values(codes)))
            results.append(stage.after.codes(y.numpy()))
            i += 1
        codes = apply(stage, codes)
    return results


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("levels", ["int8", "int4", "int3", "ternary", "midrise2"])
def test_integers_equal_the_float_layers_within_one(levels: str, granularity: str) -> None:
    model = converted(levels, granularity)
    found = affine_network(model, [images()])
    codes = found.before.codes(images(seed=2).numpy())
    ours = [y for stage, y in zip(found.stages, found.outputs(codes), strict=True) if isinstance(stage, Weighted)]
    theirs = reference(model, found, codes)
    assert len(ours) == len(theirs) == 5
    for mine, other in zip(ours, theirs, strict=True):
        assert np.abs(mine - other).max() <= 1 and (mine == other).mean() > 0.95 and len(np.unique(mine)) > 20


def test_a_float_network_gets_weights_of_8_bits_and_computes_nearly_the_same() -> None:
    model, x = network(), images(seed=3)
    found = affine_network(model, images().split(10))
    weighted = [s for s in found.stages if isinstance(s, Weighted)]
    assert all(np.abs(s.sums.weight).max() == 127 for s in weighted)
    with torch.no_grad():
        wanted = model(x).numpy()
    assert np.abs(found(x.numpy()) - wanted).max() <= 8 * found.after.scale
    assert found.bytes == sum(s.sums.weight.size + 9 * len(s.sums.weight) for s in weighted)


@pytest.mark.parametrize("levels", ["balanced8", "int4", "ternary"])
def test_onnx_runtime_computes_the_same_codes_within_one(levels: str) -> None:
    """QLinearConv with uint8 codes, weights of 8 bits by channel and int32 biases; a linear layer is one of 1x1.

    Weights have the zero point 128: sums of int8 weights saturate on processors without VNNI. Where few levels leave
    room, they are multiplied by a power of two, so that the scale of the bias is as fine as ours.
    """
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    found = affine_network(converted(levels), [images()])
    codes = found.before.codes(images(seed=2).numpy())
    compared = 0
    for stage in found.stages:
        after = apply(stage, codes)
        if isinstance(stage, Weighted):
            theirs = _qlinear_conv(onnx, onnxruntime, stage, codes)
            assert np.abs(theirs.reshape(after.shape) - after).max() <= 1
            assert (theirs.reshape(after.shape) == after).mean() > 0.99
            compared += after.size
        codes = after
    assert compared > 10_000


def _qlinear_conv(onnx: Any, onnxruntime: Any, stage: Weighted, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    sums, helper = stage.sums, onnx.helper
    weight, geometry = sums.weight, {}
    if isinstance(sums, Convolution):
        (top, left), names = sums.padding, ("strides", "pads", "dilations", "group")
        values = (list(sums.stride), [top, left, top, left], list(sums.dilation), sums.groups)
        geometry = dict(zip(names, values, strict=True))
    else:
        weight, codes = weight[:, :, None, None], codes[:, :, None, None]
    m0, shift = stage.multiplier
    sign = np.where(m0 < 0, -1, 1)  # which scales there cannot have
    weight = weight * sign[:, None, None, None]
    room = min(stage.lift, int(np.log2(127 / np.abs(weight).max())))
    weight, rest = weight << room, 2 ** (stage.lift - room)
    scales = np.abs(m0) * 2.0 ** -shift.astype(np.float64) * stage.after.scale / stage.before.scale * rest
    feeds = {
        "x_scale": np.float32(stage.before.scale),
        "x_zero": np.uint8(stage.before.zero),
        "w": (weight + 128).astype(np.uint8),
        "w_scale": np.maximum(scales, 1e-30).astype(np.float32),
        "w_zero": np.full(len(weight), 128, np.uint8),
        "y_scale": np.float32(stage.after.scale),
        "y_zero": np.uint8(stage.after.zero),
        "bias": np.rint(sign * stage.bias / rest).astype(np.int32),
    }
    inputs = ["x", *feeds]
    node = helper.make_node("QLinearConv", inputs, ["y"], **geometry)
    constants = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in feeds.items()]
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, codes.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": codes.astype(np.uint8)})
    return np.clip(y.astype(np.int64), stage.low, stage.high)


def test_a_network_of_vectors_and_functions() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.act, self.two = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Linear(12, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(torch.flatten(F.max_pool2d(self.act(self.one(x)), 2), 1))

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(50, 1, 6, 6)
    found = affine_network(model, [x])
    with torch.no_grad():
        assert np.abs(found(x.numpy()) - model(x).numpy()).max() < 4 * found.after.scale
    vectors = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    assert affine_network(vectors, [torch.randn(9, 6)])(np.zeros((3, 6))).shape == (3, 2)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.one(x)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (Twice(), torch.ones(2, 4), r"^model\.add: reads an earlier tensor, or two of them; it takes Conv2d, Linear"),
        (nn.Sequential(nn.Linear(4, 4), nn.GELU()), torch.ones(2, 4), r"^model\.1: is a GELU, which has no zero point"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), torch.ones(2, 4), r"^model\.1: does not follow a convolution or"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")), torch.ones(2, 1, 4, 4), r"^model\.0: has a padding other"),
        (nn.Sequential(nn.Linear(4, 4)), torch.full((2, 4), math.nan), r"^calibrate: batch 0: has 8 numbers that are"),
        (nn.Sequential(nn.Linear(4, 4)), {"input": torch.ones(2, 4)}, r"^calibrate: batches: has keyword arguments"),
    ],
)
def test_what_it_does_not_take_is_named(model: nn.Module, x: Any, message: str) -> None:
    with pytest.raises(MetaschedError, match=message):
        affine_network(model.eval(), [x])


def test_activations_on_levels_and_numbers_beyond_32_bits_are_refused() -> None:
    recipe = Recipe("ste", weights="int4", activations="uint4", last=True)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(2, 4)
    module, _ = metasched.prepare(model, recipe, x, total_steps=4)
    module(x)
    with pytest.raises(MetaschedError, match=r"^model\.1: is an activation on levels, whose thresholds"):
        affine_network(metasched.convert(module), [x])
    tiny = nn.Sequential(nn.Linear(4, 2)).eval()
    with torch.no_grad():
        tiny[0].weight.mul_(1e-12)  # pyright: ignore[reportCallIssue]
        tiny[0].bias.fill_(1.0)  # pyright: ignore[reportCallIssue]
    with pytest.raises(MetaschedError, match=r"^model\.0: has sums or a bias beyond 32 bits in channel 0"):
        affine_network(tiny, [torch.ones(2, 4)])


def test_zero_has_a_code_and_codes_are_those_of_torch() -> None:
    x = torch.randn(1000, dtype=torch.float64) * 3
    for low, high in ((-1.0, 2.0), (0.5, 2.0), (-3.0, -1.0), (-2.0, 2.0)):
        affine = Affine.of(low, high)
        assert affine.values(np.array([affine.zero])).tolist() == [0.0] and 0 <= affine.zero <= 255
        theirs = torch.fake_quantize_per_tensor_affine(x.float(), affine.scale, affine.zero, 0, 255)
        ours = affine.values(affine.codes(x.float().double().numpy()))
        assert np.abs(ours - theirs.double().numpy()).max() <= affine.scale * (1 + 1e-5)
        assert np.isclose(ours, theirs.double().numpy(), atol=1e-5).mean() > 0.999
