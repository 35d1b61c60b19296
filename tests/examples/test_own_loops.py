"""The examples of one's own loop run: plain, timm, a study, and the notebook from a model to ONNX."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from loading import loaded

import metasched

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.filterwarnings("ignore")  # of exporters, whose warnings differ from release to release


def load(name: str) -> ModuleType:
    pytest.importorskip("sklearn", reason="optional: train")
    torch.set_default_dtype(torch.float32)
    return loaded(EXAMPLES / f"{name}.py")


def test_the_plain_loop_ends_in_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="optional: deploy")
    example = load("plain_loop")
    found = example.main(["--steps", "60", "--out", str(tmp_path / "digits.onnx")])
    assert found["converted"] == found["prepared"] > 0.7
    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx", providers=["CPUExecutionProvider"])
    (ran,) = session.run(None, {"input": example.X[example.TEST].numpy()})
    accuracy = (torch.from_numpy(ran).argmax(1) == example.Y[example.TEST]).double().mean()
    assert float(accuracy) == pytest.approx(found["converted"], abs=0.005)


def test_the_study_goes_on_and_leaves_a_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("study")
    words = ["--folder", str(tmp_path / "study"), "--runs", "36", "--seeds", "2", "--steps", "3"]
    example.main(words)
    lines = (tmp_path / "study" / "evaluations.jsonl").read_text()
    assert "verdict after 3 steps: " in capsys.readouterr().out
    assert metasched.load(tmp_path / "study" / "best.json").method.name == "widths"
    assert "A study of the digits" in (tmp_path / "study" / "report.html").read_text("utf-8")
    example.main(words)
    assert (tmp_path / "study" / "evaluations.jsonl").read_text() == lines


def test_a_network_of_timm() -> None:
    pytest.importorskip("timm", reason="optional: timm")
    assert load("timm_model").main(["--steps", "2"]) < 1e-4


def test_without_timm_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(metasched.MetaschedError, match=r"^timm: is not installed; pip install 'metasched\[timm\]'$"):
        load("timm_model").main([])


def test_the_cells_of_the_notebook_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    for package, extra in (("sklearn", "train"), ("onnx", "deploy"), ("onnxruntime", "deploy")):
        pytest.importorskip(package, reason=f"optional: {extra}")
    torch.set_default_dtype(torch.float32)
    cells = json.loads((EXAMPLES / "own_model_to_onnx.ipynb").read_text("utf-8"))["cells"]
    names: dict[str, object] = {"__name__": "__notebook__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert isinstance(names["accuracy"], float) and names["accuracy"] > 0.6
    assert isinstance(names["difference"], float) and names["difference"] < 1e-4
    assert "bytes" in capsys.readouterr().out
