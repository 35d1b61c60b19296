"""The float networks: shapes, parameter counts of the literature, and what a quantizer relies on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.models import MODELS, build_model
from metasched.models.cutie import CutieNet, Thermometer
from metasched.models.lenet import LeNet
from metasched.models.mlp import MLP
from metasched.models.resnet import Block, ResNet20
from metasched.models.resnet9 import ResNet9
from metasched.models.vanilla_cnn import VanillaCNN
from metasched.models.vgg7 import VGG7
from metasched.models.vgg8 import VGG8
from metasched.models.vgg16 import VGG16

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
FITTING = [(name, shape) for name in MODELS for shape in SHAPES if shape[1] >= MODELS[name].smallest_image]
fitting = pytest.mark.parametrize(("name", "shape"), FITTING)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def hidden_layers(model: nn.Module) -> list[str]:
    """Kinds of the layers, in the order of registration, without pools, flattening and containers."""
    kinds = {nn.Conv2d: "layer", nn.Linear: "layer", nn.BatchNorm1d: "norm", nn.BatchNorm2d: "norm", nn.ReLU: "act"}
    return [kinds[type(module)] for module in model.modules() if type(module) in kinds]


@fitting
def test_outputs_have_one_score_a_class_and_gradients_reach_every_parameter(name: str, shape: tuple[int, int, int]):
    torch.manual_seed(0)
    model = build_model(name, shape, num_classes=7, width=4)
    outputs = model(torch.randn(5, *shape))
    assert outputs.shape == (5, 7)
    outputs.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@fitting
def test_each_layer_but_the_last_has_a_norm_and_an_activation_of_its_own(name: str, shape: tuple[int, int, int]):
    model = build_model(name, shape, num_classes=10, width=4)
    kinds = hidden_layers(model)
    num_layers = kinds.count("layer")
    assert kinds == ["layer", "norm", "act"] * (num_layers - 1) + ["layer"]


@fitting
def test_each_activation_is_used_once_and_in_the_order_of_registration(name: str, shape: tuple[int, int, int]):
    model = build_model(name, shape, num_classes=10, width=4)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.ReLU)}
    calls: list[str] = []
    for layer_name, module in layers.items():
        module.register_forward_hook(lambda *_, layer_name=layer_name: calls.append(layer_name))
    model(torch.randn(2, *shape))
    assert calls == list(layers)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_weights(name: str):
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in build_model(name, (1, 28, 28), 10, 4).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_mlp_count():
    # 64 -> 16 -> 16 -> 16 -> 10, two numbers a unit for each norm, bias in the last layer only
    assert count(MLP(64, 10, 16)) == 64 * 16 + 2 * 16 * 16 + 3 * 2 * 16 + 16 * 10 + 10


@pytest.mark.parametrize(("shape", "end"), [((1, 8, 8), 2), ((1, 28, 28), 4), ((3, 32, 32), 4)])
def test_convnet_count_and_final_resolution(shape: tuple[int, int, int], end: int):
    w = 8
    convolutions = 9 * (shape[0] * w + w * 2 * w + 2 * w * 4 * w)
    norms = 2 * (w + 2 * w + 4 * w)
    assert count(build_model("convnet", shape, 10, w)) == convolutions + norms + 4 * w * end**2 * 10 + 10


def test_vgg8_count_at_the_width_of_the_paper():
    convolutions = 9 * (3 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512)
    linear = 512 * 4 * 4 * 1024 + 1024 * 1024 + 1024 * 10 + 10
    norms = 2 * (128 + 256 + 256 + 512 + 512 + 1024 + 1024)
    assert count(VGG8(in_channels=3, num_classes=10)) == convolutions + linear + norms


def test_vgg7_count_at_the_width_of_the_paper():
    convolutions = 9 * (3 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512)
    linear = 512 * 4 * 4 * 1024 + 1024 * 10 + 10
    norms = 2 * (128 + 128 + 256 + 256 + 512 + 512 + 1024)
    assert count(VGG7(in_channels=3, num_classes=10)) == convolutions + linear + norms


def test_lenet_count_at_the_width_of_the_paper():
    # 28 -> 24 -> 12 -> 8 -> 4 pixels
    layers = 25 * (32 + 32 * 64) + 64 * 4 * 4 * 512 + 512 * 10 + 10
    assert count(LeNet(1, (28, 28), num_classes=10)) == layers + 2 * (32 + 64 + 512)


@pytest.mark.parametrize(("shape", "end"), [((1, 8, 8), 2), ((1, 28, 28), 3), ((3, 32, 32), 2), ((3, 64, 64), 2)])
def test_cutie_count_and_final_resolution(shape: tuple[int, int, int], end: int):
    w = 5
    convolutions = 9 * (8 * shape[0] * w + 6 * w * w)
    assert count(CutieNet(shape[0], shape[1:], 10, w)) == convolutions + 7 * 2 * w + w * end**2 * 10 + 10


def test_no_pool_of_cutie_cuts_a_row_off():
    for size in (8, 16, 20, 24, 28, 32, 48, 64):
        x = torch.randn(2, 1, size, size)
        for module in CutieNet(1, (size, size), num_classes=10, width=2):
            assert not (isinstance(module, nn.MaxPool2d) and (x.shape[2] % 2 or x.shape[3] % 2))
            x = module(x)


def test_the_thermometer_has_as_many_trits_as_the_value_has_steps():
    steps, size = 5, 0.25
    x = torch.linspace(-2, 2, 401)
    trits = Thermometer(steps, size)(x.reshape(1, 1, 1, -1))[0, :, 0]
    wanted = torch.floor(x / size + 0.5).clamp(-steps, steps)  # to the nearest step, halves up
    assert torch.equal(trits.sum(0), wanted)
    for k in range(steps):  # filled from the first one on
        assert torch.equal(trits[k], wanted.sign() * (wanted.abs() > k))


def test_the_thermometer_puts_the_channels_of_an_image_after_each_other():
    x = torch.tensor([0.6, -0.6]).reshape(1, 2, 1, 1)
    assert Thermometer(2, 0.5)(x).flatten().tolist() == [1, -1, 0, 0]


def test_vgg8_average_pool_is_the_identity_for_cifar():
    x = torch.randn(2, 3, 32, 32)
    for name, module in VGG8(in_channels=3, num_classes=10, width=2).named_children():
        before, x = x, module(x)
        if name == "average":
            assert before.shape[2:] == (4, 4) and torch.equal(before, x)
            return
    pytest.fail("there is no average pool")


def test_resnet20_has_the_paper_s_number_of_parameters_and_layers():
    # He et al. 2016, table 6: 20 layers, 0.27M parameters; 269,722 counted by hand with norms and the last bias
    model = ResNet20(in_channels=3, num_classes=10)
    assert count(model) == 269_722
    assert hidden_layers(model).count("layer") == 20


def test_resnet20_resolution_and_channels_of_the_stages():
    model = ResNet20(in_channels=3, num_classes=10)
    shapes: list[tuple[int, ...]] = []
    for block in model.blocks.children():
        block.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape[1:])))
    model(torch.randn(2, 3, 32, 32))
    assert shapes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


@pytest.mark.parametrize("size", [7, 8])
def test_shortcut_subsamples_and_pads_with_zero_channels(size: int):
    block = Block(2, 4, stride=2)
    nn.init.zeros_(block.norm2.weight)  # leaves ReLU of the shortcut alone
    x = torch.rand(3, 2, size, size)
    out = block(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert torch.equal(out[:, 2:], torch.zeros_like(out[:, 2:]))


@pytest.mark.parametrize("name", [spec.name for spec in MODELS.values() if spec.smallest_image > 1])
def test_the_smallest_image_works_and_a_smaller_one_says_so(name: str):
    size = MODELS[name].smallest_image
    assert build_model(name, (1, size, size), 10, 2)(torch.randn(2, 1, size, size)).shape == (2, 10)
    with pytest.raises(MetaschedError, match=rf"^task\.model: {name} needs .* at least {size}x{size}.*use one of mlp"):
        build_model(name, (1, size, size - 1), 10, 2)


def test_unknown_model_suggests_the_nearest():
    with pytest.raises(MetaschedError, match=r"^task\.model: unknown name 'resnet200'; did you mean 'resnet20'"):
        build_model("resnet200", (3, 32, 32), 10, 16)


def test_depth_of_the_convnet_is_shared_out_over_its_stages():
    model = build_model("convnet", (1, 8, 8), 10, 4, depth=7)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in layers] == [4, 4, 8, 8, 16, 16, 16]
    assert [m.stride[0] for m in layers] == [1, 1, 2, 1, 2, 1, 1]
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_depth_of_the_mlp():
    assert hidden_layers(build_model("mlp", (1, 8, 8), 10, 4, depth=5)).count("layer") == 6


@pytest.mark.parametrize(("name", "depth", "why"), [("vgg8", 8, "a fixed depth"), ("convnet", 2, "at least 3 .* 2")])
def test_a_depth_that_a_model_cannot_have(name: str, depth: int, why: str):
    with pytest.raises(MetaschedError, match=rf"^task\.depth: {name} .*{why}"):
        build_model(name, (3, 32, 32), 10, 4, depth)


def test_vanilla_cnn_has_the_layers_of_lenet5():
    # 32 -> 28 -> 14 -> 10 -> 5 pixels
    layers = 25 * (3 * 6 + 6 * 16) + 16 * 5 * 5 * 120 + 120 * 84 + 84 * 10 + 10
    assert count(VanillaCNN(3, (32, 32), num_classes=10)) == layers + 2 * (6 + 16 + 120 + 84)


def test_resnet9_count_at_the_width_of_the_source():
    convolutions = 9 * (3 * 64 + 64 * 128 + 2 * 128**2 + 128 * 256 + 256 * 512 + 2 * 512**2)
    norms = 2 * (64 + 3 * 128 + 256 + 3 * 512)
    assert count(ResNet9(in_channels=3, num_classes=10)) == convolutions + norms + 512 * 10 + 10


def test_vgg16_count_at_the_width_of_the_paper():
    pairs = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), *[(256, 256)] * 2, (256, 512), *[(512, 512)] * 5]
    layers = sum(9 * a * b for a, b in pairs) + 2 * 512**2 + 512 * 100 + 100
    norms = 2 * (sum(b for _, b in pairs) + 2 * 512)
    assert count(VGG16(3, (32, 32), num_classes=100)) == layers + norms
