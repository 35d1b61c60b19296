#!/usr/bin/env python
"""Inspects well-known networks under joint: experiments/results/zoo.json, and the table of docs/models.md.

    python scripts/zoo.py

Nothing is trained: the shares follow from the shapes of the networks, which the versions below decide.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metasched import Inspection, inspect
from metasched.io.environment import version

ROOT = Path(__file__).parents[1]
TORCHVISION = """
    resnet18 resnet50 mobilenet_v2 mobilenet_v3_small efficientnet_b0 googlenet densenet121 shufflenet_v2_x0_5
    regnet_y_400mf convnext_tiny vit_b_16 swin_t
""".split()
TIMM = """
    mobilenetv3_small_050 resnet18 efficientnet_lite0 tf_efficientnet_b0 convnext_atto deit_tiny_patch16_224 regnetx_002
    ghostnet_050 mixer_s32_224 levit_128s
""".split()
HUGGING_FACE = "bert gpt2 llama vit whisper".split()
PIXELS = {"vit_b_16": 224}


def main() -> None:
    """Writes both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="networks; default: all")
    wanted = parser.parse_args().names
    rows = []
    makers = {
        **dict.fromkeys(TORCHVISION, _vision),
        **{f"timm {name}": _timm for name in TIMM},
        **dict.fromkeys(HUGGING_FACE, _transformer),
    }
    for name in [n for n in makers if not wanted or n in wanted]:
        model, args, kwargs = makers[name](name.removeprefix("timm "))
        rows.append({"network": name, **_row(inspect(model, "joint", *args, **kwargs))})
        print(name, rows[-1])
    versions = {package: version(package) for package in ("metasched", "torch", "torchvision", "timm", "transformers")}
    result = {"command": "python scripts/zoo.py", "versions": versions, "networks": rows}
    (ROOT / "experiments/results/zoo.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    made = ", ".join(f"{package} {number}" for package, number in versions.items())
    (ROOT / "docs/tables/zoo.md").write_text(f"By `{result['command']}` with {made}.\n\n{_table(rows)}", "utf-8")


def _vision(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    from torchvision import models

    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    size = PIXELS.get(name, 64)
    return getattr(models, name)(weights=None, **extra), (torch.randn(1, 3, size, size),), {}


def _timm(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import timm

    size = 224 if "224" in name or "levit" in name else 64
    return timm.create_model(name), (torch.randn(1, 3, size, size),), {}


def _transformer(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import transformers as t

    tokens = {"input_ids": torch.arange(32).reshape(1, 32) % 30}
    size: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
    }
    if name == "bert":
        return t.BertForSequenceClassification(t.BertConfig(vocab_size=30, **size)), (), tokens
    if name == "gpt2":
        config = t.GPT2Config(vocab_size=30, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        return t.GPT2LMHeadModel(config), (), tokens
    if name == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(vocab_size=30, num_key_value_heads=2, **size)), (), tokens
    if name == "vit":
        model = t.ViTForImageClassification(t.ViTConfig(image_size=64, patch_size=8, **size))
        return model, (), {"pixel_values": torch.randn(1, 3, 64, 64)}
    parts: dict[str, Any] = {
        f"{part}_{key}": 2 for part in ("encoder", "decoder") for key in ("layers", "attention_heads")
    }
    ids: dict[str, Any] = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = t.WhisperConfig(d_model=64, num_mel_bins=8, max_source_positions=32, vocab_size=30, **parts, **ids)
    encoder = t.models.whisper.modeling_whisper.WhisperEncoder(config)
    return encoder, (), {"input_features": torch.randn(1, 8, 64)}


def _row(found: Inspection) -> dict[str, Any]:
    activations = [row for row in found.rows if row.tensor == "activation"]
    why = Counter(row.why for row in activations if not row.quantized)
    products = sum(row.mac_share for row in found.rows if row.tensor == "product")
    return {
        "parameters": found.parameters,
        "macs": found.macs,
        "quantized_parameters": found.quantized_parameters,
        "quantized_macs": found.quantized_macs,
        "products": products,
        "activations": len(activations),
        "quantized_activations": sum(row.quantized for row in activations),
        "in_float": dict(why),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    columns = (
        "network",
        "parameters quantized",
        "MACs quantized",
        "without weights",
        "activations",
        "in float",
    )
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for row in rows:
        shares = (f"{row[key]:.1%}" for key in ("quantized_parameters", "quantized_macs", "products"))
        number = f"{row['quantized_activations']} of {row['activations']}"
        why = ", ".join(f"{count} {reason.removeprefix('is ')}" for reason, count in row["in_float"].items())
        lines.append(f"| {row['network']} | {' | '.join(shares)} | {number} | {why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
