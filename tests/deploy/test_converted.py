"""Deployment of converted networks, from one's own loop to integers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metasched
from metasched import MetaschedError, MethodConfig, Recipe, convert, prepare
from metasched.deploy.converted import twin_of
from metasched.deploy.integer import input_step, integer_of
from metasched.deploy.onnx_export import installed

X = torch.linspace(-2, 2, 12 * 64).sin().reshape(12, 1, 8, 8)
Y = torch.arange(12) % 3


def network(**method: Any) -> nn.Module:
    """Depthwise convolutions, average pooling, ReLU6 and Hardtanh."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU6()),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 1),
        nn.Hardtanh(),
        nn.Flatten(),
        nn.Linear(54, 3),
    )
    config = MethodConfig(**({"name": "inq", "levels": "int4", "activation_levels": "int4"} | method))
    module, player = prepare(model, Recipe(config, last=True), X, None if config.name == "ste" else "inq_linear", 4)
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(X), Y).backward()
        optimizer.step()
        player.step()
    return convert(module, [X])


CASES: list[dict[str, Any]] = [
    {},
    {"activation_levels": "balanced4", "activation_scale": 0.125, "granularity": "channel"},
    {"name": "ste", "scale": "learned", "activation_scale": "learned", "levels": "ternary"},
    {"name": "rounding", "scale": "max", "levels": "midrise3", "activation_levels": "midrise2"},
]


@pytest.mark.parametrize("method", CASES, ids=["fixed", "by channel", "learned", "mid-rise"])
def test_all_forms_agree_and_the_folder_is_whole(method: dict[str, Any], tmp_path: Path) -> None:
    plain = network(**method)
    found = metasched.deploy(plain, [(X[:7], Y[:7]), (X[7:], Y[7:])], tmp_path / "deployed")
    for one in found["agreement"].values():
        assert one["images"] == 12 and one["integers"] > 0 and one["other_integers"] == one["other_classes"] == 0
    names = {path.name for path in (tmp_path / "deployed").iterdir()}
    assert {"network.json", "weights.bin", "golden.npz", "account.json"} <= names
    assert ("network.onnx" in names) == installed()
    account = json.loads((tmp_path / "deployed" / "account.json").read_text())
    assert account["compression"] == found["compression"] >= (8 if method.get("levels") != "ternary" else 15.8)
    # on the codes the integers are the converted network itself
    integer = integer_of(plain, X[:1], input_step(X))
    codes = torch.from_numpy(integer.encode(X.numpy()))
    outputs, _ = twin_of(plain, integer)(codes)
    torch.testing.assert_close(outputs, plain(codes * float(integer.step)).detach())
    assert found["score"] == float((outputs.argmax(1) == Y).double().mean())


def test_what_has_no_integer_form_is_refused_by_name(tmp_path: Path) -> None:
    def refused(model: nn.Module, match: str, data: Any = X) -> None:
        module, _ = prepare(model, Recipe(MethodConfig(name="ste", activation_levels="int4"), last=True), X)
        with pytest.raises(MetaschedError, match=match):
            metasched.deploy(convert(module), data, tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def sequence(*inner: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 3), *inner, nn.Flatten(), nn.Linear(72, 3))

    refused(sequence(nn.GELU()), r"^model\.1: computes GELU first, which has no integer form; use ReLU")
    refused(sequence(nn.ReLU()), r"^images: are not finite", X * float("nan"))
    refused(sequence(nn.ReLU()), r"^data: has no batches of images", [])
    with pytest.raises(MetaschedError, match=r"^deploy: the module is not a converted one"):
        metasched.deploy(nn.Sequential(nn.Linear(2, 2)), X, tmp_path / "new")
    with pytest.raises(MetaschedError, match="already exists"):
        metasched.deploy(network(), X, tmp_path)
