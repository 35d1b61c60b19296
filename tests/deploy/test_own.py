"""``metasched deploy package.module:function``: a converted network of one's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metasched.cli import main
from metasched.core import imports

MINE = """
import torch
from torch import nn
from metasched import MetaschedError, MethodConfig, Recipe, convert, prepare

X = torch.linspace(-2, 2, 10 * 16).sin().reshape(10, 1, 4, 4)

def module():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    recipe = Recipe(MethodConfig(name="ste", levels="int4", activation_levels="int4"), last=True)
    return convert(prepare(model, recipe, X)[0], [X])

def network():
    return module(), [(X[:6], torch.arange(6) % 3), (X[6:], torch.arange(4) % 3)]

def without_classes():
    return module(), X

def raises():
    return {}["missing"]

def no_pair():
    return module()

def not_converted():
    return nn.Sequential(nn.Linear(2, 2)), X

def no_images():
    return module(), 3

def vectors():
    return module(), [X.flatten(1)]

def shapes():
    return module(), [X, X[:, :, :3]]

def classes():
    return module(), [(X, torch.zeros(10, 3))]

number = 3
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_network.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    imports._ALLOWED.discard("own_network")
    sys.modules.pop("own_network", None)


@pytest.mark.parametrize("function, scored", [("network", True), ("without_classes", False)])
def test_a_converted_network_is_deployed(function: str, scored: bool, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["deploy", f"own_network:{function}", "--import", "own_network", "-o", "out", "--json"]
    assert main(command) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {"network.json", "weights.bin", "account.json"} <= {path.name for path in Path("out").iterdir()}
    assert shown["folder"] == "out" and ("score" in shown) == scored
    assert shown["agreement"]["PyTorch"]["images"] == 10 and shown["agreement"]["PyTorch"]["other_integers"] == 0


@pytest.mark.parametrize(
    "what, more, says",
    [
        ("own_network:network", [], "deploy: own_network:network is code from outside metasched"),
        ("own_network:nothing", ["--import", "own_network"], "deploy: module own_network has no function nothing"),
        ("own_network:number", ["--import", "own_network"], "deploy: module own_network has no function number"),
        ("own_network:raises", ["--import", "own_network"], "deploy: own_network:raises raised KeyError: 'missing'"),
        ("own_network:no_pair", ["--import", "own_network"], "deploy: own_network:no_pair returned a Sequential that"),
        ("own_network:not_converted", ["--import", "own_network"], "deploy: the module is not a converted one"),
        ("own_network:no_images", ["--import", "own_network"], "data: is of type int; give a tensor [N, C, H, W]"),
        ("own_network:vectors", ["--import", "own_network"], "data: has no batches of images; give a tensor"),
        ("own_network:shapes", ["--import", "own_network"], "data: has images of the shapes (1, 3, 4), (1, 4, 4)"),
        ("own_network:classes", ["--import", "own_network"], "data: has classes that are not one number for each"),
        ("own_network:network", ["--import", "own_network", "--learn"], "--learn: has no effect on a converted"),
        ("own_network:network", ["--import", "own_network", "--horizon", "2"], "--horizon: has no effect on a"),
        ("own_network:network", ["--import", "own_network", "--seed", "2"], "--seed: has no effect on a converted"),
        (
            "missing_package:network",
            ["--import", "missing_package"],
            "--import missing_package: missing_package",
        ),
        ("network.pt2", [], "network.pt2: is a saved module, and loading one may run code that is in the file; give"),
        ("network.pt", [], "network.pt: is a saved module, and loading one may run code that is in the file; give"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    what: str, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", what, *more, "-o", "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"metasched: error: {says}") and error.count("\n") == 1, error
    assert [path.name for path in Path().iterdir()] == ["own_network.py"]


def test_a_folder_that_is_there_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    assert main(["deploy", "own_network:network", "--import", "own_network", "-o", "out"]) == 2
    assert "out: already exists" in capsys.readouterr().err and not list(Path("out").iterdir())
