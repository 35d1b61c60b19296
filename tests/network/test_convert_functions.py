"""``convert`` where activations are functions: module by module, by attributes, and by torch.export."""

from __future__ import annotations

import copy
import importlib
import inspect
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from metasched import MetaschedError, MethodConfig, convert, prepare


class Block(nn.Module):
    """Functions that torch.fx traces; its owner reads its width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.width, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), 16, nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.b(F.gelu(self.a(x))))


class Branches(nn.Module):
    """A branch on values, which no trace follows, around blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks, self.head = nn.Linear(8, 8), nn.ModuleList([Block(), Block()]), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x if bool(x.sum() > 0) else -x)
        for block in self.blocks:
            assert (isinstance(block, Block) and block.width == 16) or isinstance(block, fx.GraphModule)
            x = block(x)
        return self.head(x)


class Encoder(nn.Module):
    """torch's layer has its function as an attribute."""

    def __init__(self, activation: Any = "gelu") -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=activation)
        self.first = nn.Linear(8, 8)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.first(x)).mean(1))


class Positions(nn.Module):
    """Its forward sets items of a tensor, asserts a size and calls functions: torch.export records it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, *, shift: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        assert x.shape[1] <= 16
        if shift is not None:
            x = x + shift
        x = F.relu(self.a(x))
        x[:, 0] = 0
        return {"out": self.head(F.gelu(self.b(x)).mean(1)), "hidden": x}


class Optional(nn.Module):
    """An argument that the example leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = F.relu(self.a(x))
        return self.b(y if mask is None else y * mask)


def prepared(model: nn.Module, x: torch.Tensor, **method: Any) -> nn.Module:
    torch.manual_seed(0)
    module, player = prepare(model, MethodConfig(**{"name": "inq", **method}), x, "inq_linear", 2)
    out = module(x)
    (out["out"] if isinstance(out, Mapping) else out).square().mean().backward()
    player.step()
    return module.eval()


def test_modules_that_call_functions_are_traced_alone() -> None:
    module = prepared(Branches(), x := torch.randn(5, 8))
    plain = convert(module)
    for given in (x, -x, torch.randn(7, 3, 8)):  # both branches, any sizes
        assert torch.equal(plain(given), module(given))
    assert type(plain) is Branches and isinstance(plain.blocks[0], fx.GraphModule)
    assert plain.blocks[1].width == 16  # pyright: ignore[reportAttributeAccessIssue]
    assert set(plain.state_dict()) >= set(Branches().state_dict())
    assert torch.equal(copy.deepcopy(plain)(x), plain(x))


@pytest.mark.parametrize("activation", ["relu", "gelu", F.silu])
def test_functions_that_are_attributes_become_modules(activation: Any) -> None:
    module = prepared(Encoder(activation), x := torch.randn(3, 5, 8), activation_levels="int4")
    plain = convert(module)
    assert type(plain) is Encoder and isinstance(plain.encoder.layers[0], nn.TransformerEncoderLayer)
    for given in (x, torch.randn(1, 9, 8)):
        assert torch.equal(plain(given), module(given))
    with torch.no_grad():  # where torch takes a fused path for attention
        torch.testing.assert_close(plain(x), module(x), rtol=1e-12, atol=1e-12)


def test_what_only_export_records_says_so() -> None:
    module = prepared(Positions(), torch.randn(1, 5, 8))
    with pytest.warns(UserWarning, match=r"^convert: .* graph of torch.export.* fixed: dimension 2 of x is 8$"):
        plain = convert(module)
    for shape in ((1, 5, 8), (2, 5, 8), (6, 7, 8)):
        found, wanted = plain(given := torch.randn(shape)), module(given)
        assert all(torch.equal(found[key], wanted[key]) for key in ("out", "hidden"))
    with pytest.raises(AssertionError, match="the network was converted where dimension 2 of x is 8"):
        plain(torch.randn(2, 5, 9))
    assert plain.train().eval() is plain


def test_arguments_that_the_example_leaves_out_stay_out() -> None:
    module = prepared(Optional(), x := torch.randn(5, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = convert(module)
    assert torch.equal(plain(x), module(x))


def test_what_nothing_can_trace_is_refused() -> None:
    class Both(Branches):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(F.relu(self.first(x)))

    with pytest.raises(
        MetaschedError, match=r"^convert: calls .* torch.fx cannot trace it \(.*, nor torch.export \(.*"
    ):
        convert(prepared(Both(), torch.randn(5, 8)))


@pytest.mark.filterwarnings("ignore")
def test_all_forms_load_where_the_package_cannot_be_imported(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 8)
    (tmp_path / "models.py").write_text(
        "import torch\nfrom torch import fx, nn\nfrom torch.nn import functional as F\n"
        + "".join(inspect.getsource(c) for c in (Block, Branches, Encoder, Positions)).replace("Any", "object")
    )
    sys.path.insert(0, str(tmp_path))
    try:
        models = importlib.import_module("models")
        plains = [convert(prepared(getattr(models, name)(), x)) for name in ("Branches", "Encoder", "Positions")]
        for i, plain in enumerate(plains):
            torch.save(plain, tmp_path / f"{i}.pt")
            again = torch.export.export(plain, (x,), strict=False) if i else None
            assert again is None or _alike(again.module()(x), plain(x))
        torch.save((x, [plain(x) for plain in plains]), tmp_path / "wanted.pt")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("models", None)
    program = """
import sys
sys.modules["metasched"] = None
import torch
x, wanted = torch.load("wanted.pt", weights_only=False)
for i, w in enumerate(wanted):
    found = torch.load(f"{i}.pt", weights_only=False)(x)
    assert all(torch.equal(found[k], w[k]) for k in w) if isinstance(w, dict) else torch.equal(found, w)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=tmp_path)


def _alike(a: Any, b: Any) -> bool:
    return all(_alike(a[k], b[k]) for k in b) if isinstance(b, Mapping) else torch.allclose(a, b, rtol=1e-9)
