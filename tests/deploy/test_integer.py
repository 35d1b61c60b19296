from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from metasched.core.errors import MetaschedError
from metasched.deploy import simulator
from metasched.deploy.agreement import Agreement, agreement
from metasched.deploy.integer import input_step, integer_network, integer_of
from metasched.deploy.stages import Convolution, Flip, IntegerNetwork, Linear, Logits, MaxPool, SumPool, Thresholds
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.models import build_model
from metasched.models.cutie import Thermometer
from metasched.network.convert import convert, converted
from metasched.network.module import QuantizedModule
from metasched.network.quantize import quantize

RNG = np.random.default_rng(0)


def compared(trained: Any) -> Agreement:
    integer = trained.integer()
    return agreement(trained.twin(integer), integer, [RNG.integers(-128, 128, (6, *integer.image))])


@given(st.data())
@settings(max_examples=60)
def test_random_networks_agree_with_pytorch(random_networks: Any, data: st.DataObject) -> None:
    found = compared(data.draw(random_networks))
    assert found.complete, found


@pytest.mark.slow
@given(st.data())
@settings(max_examples=400)
def test_many_random_networks_agree_with_pytorch(random_networks: Any, data: st.DataObject) -> None:
    found = compared(data.draw(random_networks))
    assert found.complete, found


@pytest.mark.parametrize(
    "name, size",
    [("mlp", 8), ("resnet20", 8), ("convnet", 16), ("cutie", 8), ("cutie", 28), ("vgg8", 16), ("vgg8", 32)],
)
@pytest.mark.parametrize("last", [True, False])
def test_the_models_agree_with_pytorch(as_trained: Any, name: str, size: int, last: bool) -> None:
    model = build_model(name, (3, size, size), num_classes=10, width=4)
    found = compared(as_trained(model, MethodConfig(name="ana"), torch.zeros(1, 3, size, size), 1, last))
    assert found.complete and found.integers > 0, found


def test_a_difference_is_found(as_trained: Any) -> None:
    model = build_model("mlp", (1, 4, 4), num_classes=3, width=8)
    trained = as_trained(model, MethodConfig(name="ana"), torch.zeros(1, 1, 4, 4), 1)
    integer = trained.integer()
    twin = trained.twin(integer)
    off = tuple(
        Thresholds(s.name, s.values + 1, s.levels, s.step) if isinstance(s, Thresholds) else s for s in integer.stages
    )
    codes = RNG.integers(-20, 20, (50, 1, 4, 4))
    found = agreement(twin, IntegerNetwork(integer.image, integer.step, off), [codes])
    assert found.other_integers > 0 and not found.complete and found.images == 50


def test_stages_of_a_small_network_by_hand() -> None:
    """conv - max pool - norm with gamma < 0 - ternary activation - linear, all by hand."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(1, eps=0), nn.ReLU())
    model = nn.Sequential(*model, nn.Flatten(), nn.Linear(1, 2))
    network = quantize(model, build_method(MethodConfig(name="ste")), torch.zeros(1, 1, 2, 2), last=True)
    params = {
        "0.weight": torch.tensor([[[[0.9]]]]),
        "2.weight": torch.tensor([-2.0]),
        "2.bias": torch.tensor([1.0]),
        "5.weight": torch.tensor([[1.0], [-1.0]]),
        "5.bias": torch.zeros(2),
    }
    statistics = {"2.running_mean": torch.tensor([1.0]), "2.running_var": torch.tensor([4.0])}
    buffers = network.buffers() | statistics
    state = {"0/scale": torch.ones(1, 1, 1, 1), "5/scale": torch.ones(1, 1)}
    integer = integer_network(network, params, state, buffers, torch.zeros(1, 1, 2, 2), Fraction(1, 4))
    convolution, pool, flip, thresholds, _, last, logits = integer.stages
    assert isinstance(convolution, Convolution) and convolution.reach == 128
    assert convolution.weight.tolist() == [[[[1]]]]
    assert isinstance(pool, MaxPool) and isinstance(flip, Flip) and flip.sign.tolist() == [-1]
    # -2 (y / 4 - 1) / 2 + 1 = 2 - y / 4 >= -1/2, 1/2 for y <= 10, 6
    assert isinstance(thresholds, Thresholds) and thresholds.values.tolist() == [[-10, -6]]
    assert isinstance(last, Linear) and isinstance(logits, Logits) and logits.multiplier.tolist() == [1, 1]
    codes = np.array([[[[5, 6], [1, 0]]], [[[7, 0], [0, 0]]], [[[-99, 11], [0, 0]]]])
    assert simulator.run(integer, codes).tolist() == [[1, -1], [0, 0], [-1, 1]]


@given(st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2), st.sampled_from([1, 2]))
def test_the_simulators_convolution_is_pytorchs(
    kernel: int, stride: int, padding: int, dilation: int, groups: int
) -> None:
    x, w = RNG.integers(-9, 10, (2, 4, 7, 8)), RNG.integers(-3, 4, (6, 4 // groups, kernel, kernel))
    pairs = (stride, stride), (padding, padding), (dilation, dilation)
    ours = simulator.apply(Convolution("c", w, (), 10**6, *pairs, groups), x)
    theirs = F.conv2d(torch.tensor(x), torch.tensor(w), None, stride, padding, dilation, groups)
    assert np.array_equal(ours, theirs.numpy())  # int64 on both sides


@pytest.mark.parametrize("height, width", [(1, 1), (2, 2), (5, 3), (4, 5), (3, 1), (2, 3)])
def test_the_simulators_adaptive_average_is_pytorchs(height: int, width: int) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d((height, width)))
    model = nn.Sequential(*model, nn.Flatten(), nn.Linear(height * width, 2))
    network = quantize(model, build_method(MethodConfig(name="ste")), torch.zeros(1, 1, 5, 3), last=True)
    params = {name: p.detach() for name, p in network.module.named_parameters()}
    state = {"0/scale": torch.ones(1, 1, 1, 1), "4/scale": torch.ones(1, 1)}
    integer = integer_of(converted(network, params, state, {}), torch.zeros(1, 1, 5, 3), Fraction(1))
    pools = [s for s in integer.stages if isinstance(s, SumPool)]
    x = RNG.integers(-9, 10, (2, 1, 5, 3))
    theirs = F.adaptive_avg_pool2d(torch.tensor(x).double(), (height, width))
    ours = torch.tensor(simulator.apply(pools[0], x)) if pools else torch.tensor(x)
    factor = int(pools[0].rows[0].sum() * pools[0].columns[0].sum()) if pools else 1
    assert np.allclose(ours.double(), theirs * factor)


def test_codes_are_the_nearest_multiples_within_eight_bits() -> None:
    assert input_step(torch.tensor([127.0])) == 1 and input_step(torch.tensor([-127.5])) == 2
    codes = IntegerNetwork((1, 1, 1), Fraction(1, 2), ()).encode([0.26, -0.25, 0.75, 99, -99])
    assert codes.tolist() == [1, 0, 2, 127, -128]


def refused(model: nn.Module, example: torch.Tensor, config: MethodConfig | None = None, **which: bool) -> str:
    network = quantize(model, build_method(config or MethodConfig(name="ste")), example, **which)
    params = {name: p.detach() for name, p in network.module.named_parameters()}
    params, state = network.initialize(params, {}, 0)
    plain = converted(network, params, state, network.buffers())
    with pytest.raises(MetaschedError) as error:
        integer_of(plain, example, Fraction(1))
    return str(error.value)


IMAGE, ROW = torch.zeros(1, 1, 8, 8), nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    "model, says",
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanhshrink(), nn.Linear(4, 2)), "model.2: is a Tanhshrink"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 2)), "model.2: follows a layer whose activation"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 6)), "model: does not end with class scores"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.ReLU()), "model.0: has a padding other than"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()), "model.1: is a MaxPool2d with"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, padding=1), nn.ReLU()), "model.1: is an AvgPool2d with"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.ReLU()), "model.1: flattens sums that are not quantized"),
        (nn.Sequential(nn.Linear(8, 2), nn.ReLU()), "model.0: is a linear layer on images"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), Thermometer(), nn.Conv2d(16, 2, 6)),
            "model.2: is a Thermometer after other layers",
        ),
    ],
)
def test_what_has_no_integer_form_is_one_line(model: nn.Module, says: str) -> None:
    message = refused(model, IMAGE, last=True)
    assert message.startswith(says) and "\n" not in message


def test_float_activations_are_named() -> None:
    config = MethodConfig(name="ste", activation_levels=None)
    assert refused(nn.Sequential(nn.Flatten(), *ROW), IMAGE, config).startswith("model.2: is an activation that is not")


def test_a_first_layer_in_float_is_named() -> None:
    model = build_model("convnet", (1, 8, 8), 10, 2)
    assert refused(model, IMAGE, first=False).startswith("model.conv1: is not quantized")


def test_levels_beyond_eight_bits_are_named() -> None:
    config = MethodConfig(name="ste", levels="pow2_5")
    assert "model.1: has weight levels beyond 8 bits" in refused(nn.Sequential(nn.Flatten(), *ROW), IMAGE, config)


@pytest.mark.parametrize(
    "levels", [{"levels": "normal2"}, {"activation_levels": "normal3"}, {"activation_levels": "pow2_7"}]
)
def test_levels_that_are_no_multiples_of_one_number_are_named(levels: dict[str, str]) -> None:
    found = refused(nn.Sequential(nn.Flatten(), *ROW), IMAGE, MethodConfig(name="rounding", **levels))
    assert re.match(r"model\.\d: has levels that are no multiples of 1 / 256", found)


def test_parameters_that_are_not_finite_are_named() -> None:
    network = quantize(nn.Sequential(nn.Flatten(), *ROW), build_method(MethodConfig(name="ste")), IMAGE)
    params = {name: p.detach() for name, p in network.module.named_parameters()}
    params, state = network.initialize(params, {}, 0)
    params["3.bias"] = torch.tensor([0.0, torch.inf])
    with pytest.raises(MetaschedError, match=r"model\.3: has non-finite parameters or statistics"):
        integer_of(converted(network, params, state, {}), IMAGE, Fraction(1))


@pytest.mark.parametrize("shape", [(64,), (2, 16)])
def test_vectors_and_sequences_are_one_line(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(64, 8) if len(shape) == 1 else nn.Conv1d(2, 8, 16)
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    assert refused(model, torch.zeros(1, *shape), last=True).startswith(f"example: has shape {[1, *shape]}")


def test_images_of_another_size_or_with_nan_are_one_line(as_trained: Any) -> None:
    trained = as_trained(build_model("convnet", (1, 8, 8), 10, 2), MethodConfig(name="ste"), IMAGE, 0)
    for shape in ((1, 1, 12, 12), (1, 3, 8, 8)):
        with pytest.raises(MetaschedError, match=r"^model\..*: needs \d+ (inputs|channels), and gets"):
            replace(trained, example=torch.zeros(shape)).integer()
    with pytest.raises(MetaschedError, match=r"^images: are not finite, or there are none"):
        input_step(torch.tensor([0.0, torch.nan]))
    with pytest.raises(MetaschedError, match=r"^images: are not finite, or there are none"):
        input_step(torch.zeros(0, 1, 8, 8))
    with pytest.raises(MetaschedError, match=r"^images: have NaN"):
        trained.integer().encode([0.0, np.nan])
    assert input_step(torch.tensor([-128], dtype=torch.int8)) == 2


def test_the_network_of_a_module_for_own_loops_is_deployed() -> None:
    config = MethodConfig(name="ste", scale="max", activation_scale="learned")
    model = nn.Sequential(nn.Flatten(), *ROW)
    network = quantize(model, build_method(config), IMAGE, last=True)
    module = QuantizedModule(network, {layer.name: {} for layer in network.layers}, example=torch.ones(2, 1, 8, 8))
    plain = convert(module)
    images = torch.linspace(-2, 2, 128).reshape(2, 1, 8, 8)
    assert torch.equal(plain(images), module.deployed(images))
    assert len(integer_of(plain, IMAGE, Fraction(1)).weighted) == 2
