"""``inspect``: rows, reasons, shares of parameters and of multiply-accumulates, strict."""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metasched
from metasched import MetaschedError, MethodConfig, Recipe, Rule
from metasched.cli.entry import main
from metasched.network.inspect import Inspection, Row

STE = MethodConfig(name="ste", scale="max")


def rows(found: Inspection) -> dict[str, Row]:
    return {f"{row.module}/{row.tensor}": row for row in found.rows}


def test_every_tensor_has_a_row_and_its_shares() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 216 weights; 16 pixels: 3,456 multiply-accumulates for each image
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),  # 72 weights; 4 pixels: 288
        nn.Hardswish(),
        nn.ConvTranspose2d(8, 4, 2, groups=2, stride=2),  # 64 weights; 4 pixels in: 256
        nn.Flatten(),
        nn.Linear(64, 5),  # 320
    )
    rules = [Rule("3", levels="int4"), Rule("4", activation="float")]
    found = metasched.inspect(model, Recipe(STE, rules), torch.randn(2, 3, 4, 4))
    total = sum(p.numel() for p in model.parameters())
    assert found.parameters == total
    assert found.macs == 2 * (3456 + 288 + 256 + 320)
    by = rows(found)
    assert [by[f"{i}/weight"].macs for i in (0, 3, 5, 7)] == [2 * 3456, 2 * 288, 2 * 256, 2 * 320]
    assert [by[f"{i}/weight"].parameters for i in (0, 3, 5, 7)] == [216, 72, 64, 320]
    assert [by[f"{i}/weight"].levels for i in (0, 3, 5, 7)] == [3, 16, 3, None]
    assert found.quantized_parameters == pytest.approx((216 + 72 + 64) / total)
    assert found.quantized_macs == pytest.approx(4000 / 4320)
    assert by["7/weight"].why == "is the last layer"
    assert by["2/activation"].layer == "0" and by["2/activation"].levels == 3
    assert by["4/activation"].why == "a rule says so"
    assert by["(others)/weight"].parameters == total - 216 - 72 - 64 - 320
    assert sum(row.parameter_share for row in found.rows) == pytest.approx(1)
    assert sum(row.mac_share for row in found.rows) == pytest.approx(1)


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head, self.fused = nn.Linear(8, 3), fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.table(x)
        return self.head(self.layer(x) if self.fused else F.softmax(x @ x.mT, -1) @ x)


def test_products_of_activations_have_a_row() -> None:
    x = torch.randint(9, (3, 5))
    found = rows(metasched.inspect(Attention(False), Recipe(STE, last=True), x))
    assert found["(products)/product"].macs == 3 * 2 * 5 * 5 * 8
    assert found["head/weight"].macs == 3 * 5 * 8 * 3 and found["table/weight"].macs == 0
    found = rows(metasched.inspect(Attention(True), STE, x))
    assert found["(products)/product"].macs == 3 * 2 * 5 * 5 * 8
    assert found["layer.self_attn.in_proj_weight/weight"].macs == 3 * 5 * 8 * 24
    assert found["layer.self_attn.out_proj/weight"].macs == 3 * 5 * 8 * 8
    assert found["layer.linear1/weight"].macs == found["layer.linear2/weight"].macs == 3 * 5 * 8 * 16
    assert found["layer.activation/activation"].quantized and found["table/weight"].why == "is quantized by a rule only"


def test_a_tied_weight_counts_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].weight = model[0].weight
    found = metasched.inspect(model, STE, torch.randn(1, 8))
    by = rows(found)
    assert found.parameters == 64 + 24 + 19 and found.macs == 64 + 64 + 24
    assert (by["0/weight"].parameters, by["0/weight"].macs) == (64, 128)
    assert (by["2/weight"].layer, by["2/weight"].parameters) == ("0", 0)


def test_strict_refuses_what_stays_in_float_without_a_rule() -> None:
    x = torch.randn(1, 8)
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    metasched.inspect(plain, STE, x, strict=True)  # the last layer: the recipe says so
    for odd in (nn.PReLU(), nn.LSTM(8, 8)):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), First(odd), nn.Linear(8, 3))
        method = MethodConfig(name="ste", scale="max", activation_levels="uint4")
        with pytest.raises(MetaschedError, match=r"^inspect: \d tensors stay in float though no rule .*; add Rule\("):
            metasched.inspect(model, method, x, strict=True)
        metasched.inspect(model, Recipe(method, [Rule("3", quantize=False)]), x, strict=True)


class First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.inner(x)
        return found[0] if isinstance(found, tuple) else found


def test_a_table_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    found = metasched.inspect(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), STE, torch.randn(1, 8))
    monkeypatch.setenv("COLUMNS", "70")
    assert {len(line) for line in str(found).splitlines()} == {70}


def test_a_notebook_shows_the_table_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = metasched.inspect(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), STE, torch.randn(1, 8))
    text = str(found)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)  # there rich shows what it prints by itself
    assert str(found) == text != ""


def test_tables_dataframes_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    found = metasched.inspect(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), STE, torch.randn(1, 8))
    text = str(found)
    assert "is the last layer" in text and "72.7% of 88 multiply-accumulates" in text
    assert "of 0; the function is kept" in text and f">{escape(text)}</pre>" in found._repr_html_()
    read = json.loads(found.json())
    assert read["macs"] == 88 and [row["module"] for row in read["rows"]] == ["0", "2", "1", "(others)"]
    frame = found.dataframe()
    assert list(frame["macs"]) == [64, 24, 0, 0]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MetaschedError, match=r"^pandas: is not installed; pip install"):
        found.dataframe()


def test_keywords_and_functions_run_the_example() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor, *, times: int = 1) -> torch.Tensor:
            for _ in range(times):
                x = self.a(x)
            return self.head(x)

    x = torch.randn(1, 8)
    assert metasched.inspect(Two(), STE, x, times=3).macs == 3 * 64 + 24
    assert metasched.inspect(Two(), "ste", lambda model: model(x)).macs == 64 + 24
    with pytest.raises(MetaschedError, match=r"^inspect: example: is missing"):
        metasched.inspect(Two(), STE)


def test_the_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    metasched.inspect(model, STE, torch.randn(4, 8))
    assert model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def run(path: Path, quantize: str, *options: str) -> int:
    path.write_text(f"task: {{name: digits, model: convnet}}\nmethod: {{name: ste}}\nquantize: {quantize}\n")
    return main(["inspect", str(path), *options])


def test_the_command_prints_the_table(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path / "a.yaml", "{rules: [{match: conv2, levels: int4}]}") == 0
    said = capsys.readouterr().out
    assert "conv2" in said and "16 (4 bits)" in said and "in float: is the last layer" in said
    assert run(tmp_path / "a.yaml", "{}", "--json", "--strict") == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["module"] == "conv1"


def test_the_command_refuses_with_one_line(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path / "a.yaml", "{rules: [{match: conv9, quantize: false}]}") == 2
    assert capsys.readouterr().err.count("\n") == 1
