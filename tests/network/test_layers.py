"""Types of layers: which dimension of a weight is the output channel, fan-in, attention, tied weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from metasched import MetaschedError, MethodConfig, QuantizedModule, Recipe, Rule, quantize
from metasched.methods.oriented import rows_first
from metasched.network.quantized import QuantizedNetwork

CHANNEL = MethodConfig(name="ste", scale="max", granularity="channel", activation_levels=None)


class Conv1D(nn.Module):
    """As Hugging Face's GPT-2 has it: a linear layer whose weight is [in, out]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


LAYERS: dict[str, tuple[nn.Module, torch.Tensor, int, int]] = {  # layer, input, channels out, fan-in
    "linear": (nn.Linear(6, 4), torch.randn(2, 6), 4, 6),
    "conv1d": (nn.Conv1d(6, 4, 3), torch.randn(2, 6, 9), 4, 18),
    "conv2d_grouped": (nn.Conv2d(6, 4, 3, groups=2, dilation=2), torch.randn(2, 6, 9, 9), 4, 27),
    "conv2d_depthwise": (nn.Conv2d(6, 6, 3, groups=6), torch.randn(2, 6, 9, 9), 6, 9),
    "conv3d": (nn.Conv3d(2, 4, 3), torch.randn(2, 2, 5, 5, 5), 4, 54),
    "transposed1d": (nn.ConvTranspose1d(6, 4, 3), torch.randn(2, 6, 5), 4, 18),
    "transposed2d": (nn.ConvTranspose2d(6, 4, 3, stride=2), torch.randn(2, 6, 5, 5), 4, 54),
    "transposed2d_grouped": (nn.ConvTranspose2d(6, 4, 3, groups=2), torch.randn(2, 6, 5, 5), 4, 27),
    "transposed3d_depthwise": (nn.ConvTranspose3d(4, 8, 2, groups=4), torch.randn(2, 4, 3, 3, 3), 8, 8),
    "huggingface": (Conv1D(4, 6), torch.randn(2, 6), 4, 6),
}


def wrap(model: nn.Module, example: Any, *rules: Rule, method: MethodConfig = CHANNEL) -> QuantizedNetwork:
    return quantize(model, Recipe(method, rules, last=True), example)


@pytest.mark.parametrize("method", ["ste", "joint", "gxnor", "inq", "metropolis"])
@pytest.mark.parametrize("name", LAYERS)
def test_scales_by_channel_fit_each_output_channel(name: str, method: str) -> None:
    layer, x, out, fan_in = LAYERS[name]
    network = wrap(nn.Sequential(layer), x, method=MethodConfig(**{**vars(CHANNEL), "name": method}))
    (found,) = network.layers
    assert (found.name, found.fan_in, found.num_weights) == ("0", fan_in, out * fan_in)
    controls = {"0": {c.name: max(c.low, 0.0) for c in network.method.controls}}
    module = QuantizedModule(network, controls)
    assert module.method_state()["0/scale"].numel() == out
    loss = module(x, controls, 0).square().sum()
    loss.backward()
    module.settle()
    hard = module.hardened()["0.weight"]
    # independent of how weights lie: scaling one output channel of the layer scales its outputs, and nothing else
    with torch.no_grad():
        probe = nn.utils.parameters_to_vector([hard])
        layer.weight.copy_(hard)  # type: ignore[operator]
        y = layer(x) - layer(torch.zeros_like(x))
        dim = -1 if y.dim() == 2 else 1
        assert y.shape[dim] == out and probe.numel() == out * fan_in
        for channel in range(out):
            w = rows_first(hard, _groups(layer)).clone()
            w[channel] *= 3
            layer.weight.copy_(rows_first(w, _groups(layer)))  # type: ignore[operator]
            ratio = (layer(x) - layer(torch.zeros_like(x))) - y
            others = [c for c in range(out) if c != channel]
            torch.testing.assert_close(ratio.select(dim, channel), 2 * y.select(dim, channel))
            assert float(ratio.index_select(dim, torch.tensor(others)).abs().max()) < 1e-12
    for row in rows_first(hard, _groups(layer)):
        assert len(row.abs().unique()) <= 2  # 0 and the scale of the channel


def _groups(layer: nn.Module) -> int:
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    return layer.groups if transposed else int(isinstance(layer, Conv1D))


def test_turning_a_weight_twice_leads_back() -> None:
    w = torch.randn(6, 5, 3)
    for groups in (0, 1, 2, 3, 6):
        assert torch.equal(rows_first(rows_first(w, groups), groups), w)
    assert rows_first(w, 2).shape == (10, 3, 3) and rows_first(w, 0) is w


def test_a_transposed_convolution_trains_as_the_equal_linear_layer_does() -> None:
    """With kernel 1 it is x @ W: hard weights, gradients and updates are those of a Linear layer with W transposed."""
    torch.manual_seed(0)
    linear, turned = nn.Linear(6, 4, bias=False), nn.ConvTranspose1d(6, 4, 1, bias=False)
    with torch.no_grad():
        turned.weight.copy_(linear.weight.T[..., None])
    x, found = torch.randn(5, 6), []
    for layer, inputs in ((linear, x), (turned, x[..., None])):
        network = wrap(nn.Sequential(layer), inputs, method=MethodConfig(name="inq", granularity="channel"))
        module = QuantizedModule(network, {"0": {"freeze_fraction": 0.5}})
        module(inputs, {"0": {"freeze_fraction": 0.5}}, 0).square().sum().backward()
        torch.optim.SGD(module.parameters(), lr=0.01).step()
        module.settle()
        found.append(module.module.get_parameter("0.weight").detach())
    torch.testing.assert_close(found[1][..., 0].T, found[0], rtol=0, atol=1e-14)


class Attention(nn.Module):
    def __init__(self, kdim: int | None = None) -> None:
        super().__init__()
        self.embed, self.attn = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True, kdim=kdim, vdim=kdim)
        self.act, self.head, self.kdim = nn.ReLU(), nn.Linear(8, 3), kdim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        keys = x if self.kdim is None else x[..., : self.kdim]
        return self.head(self.act(self.attn(x, keys, keys, need_weights=False)[0]))


@pytest.mark.parametrize("kdim", [None, 4])
def test_attention_is_quantized_in_training_and_in_the_fused_path(kdim: int | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    method = MethodConfig(name="ste", scale="max")
    network = quantize(Attention(kdim), Recipe(method), x)
    inner = ["attn.in_proj_weight"] if kdim is None else [f"attn.{n}_proj_weight" for n in "qkv"]
    assert [layer.name for layer in network.layers] == ["embed", *inner, "attn.out_proj"]
    assert [layer.quantizes for layer in network.layers][-1] == "weight+activation"
    module = QuantizedModule(network, {layer.name: {} for layer in network.layers})
    module(x, {layer.name: {} for layer in network.layers}, 0).sum().backward()
    for layer in network.layers:
        assert module.module.get_parameter(layer.weight_key).grad is not None
        assert len(module.hardened()[layer.weight_key].unique()) <= 3
    trained = module.train().deployed(x)
    torch.testing.assert_close(module.eval().deployed(x), trained)
    plain = Attention(kdim)
    plain.load_state_dict(module.hardened())
    with torch.no_grad():
        hidden = plain.attn(*[plain.embed(x)[..., : kdim if i else 8] for i in range(3)], need_weights=False)[0]
        hidden = plain.head((torch.relu(hidden) >= 0.5).to(x.dtype))
    torch.testing.assert_close(trained, hidden)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc, self.head = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.fc(self.table(x))))


def test_tied_weights_are_one_layer() -> None:
    tokens = torch.arange(6).reshape(2, 3)
    network = quantize(Tied(), Recipe(MethodConfig(name="ste", scale="max")), tokens)
    assert [layer.name for layer in network.layers] == ["fc"]
    why = {t.name: t.why for t in network.tensors}
    assert why["head"] == "is the last layer" and why["table"].startswith("shares its weight with head")
    network = wrap(Tied(), tokens)
    assert [(x.name, x.weight_key, x.kind) for x in network.layers] == [
        ("head", "table.weight", "linear"),
        ("fc", "fc.weight", "linear"),
    ]
    module = QuantizedModule(network, {"fc": {}, "head": {}})
    seen: list[torch.Tensor] = []
    for name in ("table", "head"):
        module.module.get_submodule(name).register_forward_hook(lambda m, _i, _o: seen.append(m.weight.detach()))
    module.deployed(tokens)
    assert torch.equal(*seen) and all(len(row.abs().unique()) <= 2 for row in seen[0])
    with pytest.raises(MetaschedError, match=r"^model\.head: shares its weight with table, which is not quantized"):
        wrap(Tied(), tokens, Rule("table", quantize=False))


def test_embeddings_are_quantized_by_a_rule() -> None:
    model, tokens = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 3)), torch.arange(6)
    assert [layer.name for layer in wrap(model, tokens).layers] == ["1", "2"]
    network = wrap(model, tokens, Rule("Embedding", quantize=True))
    assert [(layer.name, layer.fan_in) for layer in network.layers] == [("0", 1), ("1", 8), ("2", 8)]


def test_a_parametrized_weight_stays_in_float_and_says_so() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8), nn.Linear(8, 3))
    network = wrap(model, torch.randn(2, 8))
    assert [layer.name for layer in network.layers] == ["1", "2"]
    assert any(line.startswith("0 (ParametrizedLinear): has a computed weight") for line in network.floats)
