"""Well-known networks: nothing stays in float without its reason, they train, and convert and ONNX Runtime agree."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metasched import Inspection, MethodConfig, QuantizedModule, Recipe, convert, inspect, prepare, quantize

torchvision = pytest.importorskip("torchvision")
JOINT = Recipe(MethodConfig(name="joint", scale="max"))
CONTROLS = {"weight_noise": 0.5, "activation_noise": 0.5, "noise_mean": 0.0, "freeze_fraction": 0.0}


def images(size: int) -> torch.Tensor:
    return torch.randn(4, 3, size, size)


def vit_tiny() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=10)


TINY: dict[str, tuple[Callable[[], nn.Module], int, float]] = {  # model, size of images, least share of MACs
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10, norm_layer=nn.BatchNorm2d), 32, 0.99),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), 32, 0.99),
    "vit_tiny": (vit_tiny, 16, 0.9),
}
LARGE = {
    **dict.fromkeys(("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"), 0.99),
    **dict.fromkeys(("densenet121", "shufflenet_v2_x0_5", "regnet_y_400mf", "convnext_tiny"), 0.99),
    **{"googlenet": 0.99, "vit_b_16": 0.95, "swin_t": 0.9},
}


SMALL: dict[str, Callable[[], nn.Module]] = {  # which are trained, converted and exported in a moment
    "densenet": lambda: torchvision.models.DenseNet(4, (1, 1, 1, 1), 8, num_classes=3),
    "vit": vit_tiny,
}


def output_of(found: Any) -> torch.Tensor:
    """The first tensor of what a model puts out."""
    if isinstance(found, torch.Tensor):
        return found
    return output_of(next(iter(found.values() if hasattr(found, "values") else found)))


def examined(model: nn.Module, *args: Any, steps: int, **kwargs: Any) -> Inspection:
    """The inspection of a model that has been trained for some steps under joint with finite losses and weights."""
    found = inspect(model, JOINT, *args, **kwargs)
    for row in found.rows:
        assert row.quantized or row.why, row
    network = quantize(model, JOINT, lambda m: m(*args, **kwargs))
    controls = {layer.name: CONTROLS for layer in network.layers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says what stays in float
        module = QuantizedModule(network, controls)
    optimizer = torch.optim.SGD((p for p in module.parameters() if p.is_floating_point()), lr=1e-4)
    for step in range(steps):
        rows = {layer.name: {**CONTROLS, "freeze_fraction": step / steps} for layer in network.layers}
        loss = output_of(module(*args, controls=rows, step=step, **kwargs)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.settle()
        assert bool(loss.isfinite())
    for layer in network.layers:
        assert module.module.get_parameter(layer.weight_key).grad is not None, layer.name
    for name, w in module.hardened().items():
        if name in {layer.weight_key for layer in network.layers}:
            assert len(w.unique()) <= 3, name
    assert bool(output_of(module.eval().deployed(*args, **kwargs)).isfinite().all())
    return found


def delivered(folder: Path, model: nn.Module, *args: Any, steps: int, **kwargs: Any) -> nn.Module:
    """What ``convert`` makes of a model that was trained for some steps; torch.export and ONNX Runtime agree."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says what stays in float
        module, player = prepare(model, JOINT, kwargs or args, "joint_linear", steps)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    for _ in range(steps):
        loss = output_of(module(*args, **kwargs)).square().mean() + player.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        player.step()
    plain = convert(module)
    assert not any("metasched" in type(m).__module__ for m in plain.modules())
    wanted, found = output_of(module.eval()(*args, **kwargs)).detach(), output_of(plain(*args, **kwargs)).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters
        exported = torch.export.export(plain, args, kwargs, strict=False)
        torch.testing.assert_close(output_of(exported.module()(*args, **kwargs)), found, rtol=1e-6, atol=1e-6)
        torch.onnx.export(exported, args, folder / "plain.onnx", kwargs=kwargs, dynamo=True, verbose=False)
    session = runtime.InferenceSession(folder / "plain.onnx")
    given = zip(session.get_inputs(), (*args, *kwargs.values()), strict=True)
    ran = torch.from_numpy(session.run(None, {put.name: x.numpy() for put, x in given})[0])
    torch.testing.assert_close(ran, found, rtol=1e-4, atol=1e-4)
    return plain


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_network_of_the_zoo(name: str) -> None:
    make, size, share = TINY[name]
    found = examined(make(), images(size), steps=1)
    assert found.quantized_macs > share
    reasons = {row.why for row in found.rows if row.tensor == "activation" and not row.quantized}
    assert reasons <= {"is a gate"}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_is_delivered(name: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    delivered(tmp_path, SMALL[name](), images(32 if name != "vit" else 16), steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_network_of_torchvision(name: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    extra = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    size = 224 if name == "vit_b_16" else 64
    model = getattr(torchvision.models, name)(weights=None, num_classes=10, **extra)
    found = examined(model, images(size).float(), steps=20)
    assert found.quantized_macs > LARGE[name]
    delivered(tmp_path, model, images(size), steps=20)


TIMM = """
    mobilenetv3_small_050 resnet18 efficientnet_lite0 tf_efficientnet_b0 convnext_atto deit_tiny_patch16_224
    regnetx_002 ghostnet_050 mixer_s32_224 levit_128s
""".split()


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_a_network_of_timm(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.set_default_dtype(torch.float32)
    model = timm.create_model(name, num_classes=10)
    x = images(224 if "224" in name or "levit" in name else 64)
    examined(model, x, steps=20)
    delivered(tmp_path, model, x, steps=20)


def transformer(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A small network of Hugging Face, and keyword arguments; without a cache, which is no output for exporters."""
    t = pytest.importorskip("transformers", reason="transformers is not installed")
    tokens = {"input_ids": torch.arange(12).reshape(2, 6) % 30}
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if name == "bert":
        return t.BertForSequenceClassification(t.BertConfig(vocab_size=30, max_position_embeddings=16, **size)), tokens
    if name == "gpt2":
        config = t.GPT2Config(
            **{"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
            **{"bos_token_id": 0, "eos_token_id": 0, "use_cache": False},
        )
        return t.GPT2LMHeadModel(config), tokens
    if name == "llama":
        config = t.LlamaConfig(
            vocab_size=30, max_position_embeddings=16, num_key_value_heads=2, use_cache=False, **size
        )
        return t.LlamaForCausalLM(config), tokens
    if name == "vit":
        config = t.ViTConfig(image_size=16, patch_size=8, **size)
        return t.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 16, 16)}
    parts = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = t.WhisperConfig(d_model=16, num_mel_bins=8, max_source_positions=8, vocab_size=30, **parts, **ids)
    return t.models.whisper.modeling_whisper.WhisperEncoder(config), {"input_features": torch.randn(2, 8, 16)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit", "whisper"])
def test_a_network_of_hugging_face(name: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, kwargs = transformer(name)
        found = examined(model, steps=20, **kwargs)
        delivered(tmp_path, model, steps=20, **kwargs)
    assert found.quantized_macs > 0.5
