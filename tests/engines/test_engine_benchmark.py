"""The benchmark of the engines runs, goes on where it was stopped, and counts bytes exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from loading import loaded

FOLDER = Path(__file__).parents[2] / "scripts" / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))  # a script finds the files beside it
    try:
        module = loaded(FOLDER / "hypergradient.py")
        yield module
    finally:
        sys.path.remove(str(FOLDER))


def test_a_row_holds_what_was_measured(benchmark):
    case = benchmark.Case("convnet", "sgd", 2)
    torch.set_default_dtype(torch.float32)
    small, large = (benchmark.measured("bytes", name, case)["bytes"] for name in ("sweep", "unroll"))
    assert 2**20 < small < large  # a batch of activations, at least
    assert benchmark.measured("seconds", "plain", case)["seconds"] > 0


def test_bytes_are_those_of_live_tensors(benchmark):
    def work() -> None:
        a = torch.zeros(1000, dtype=torch.float64)
        del a
        b = torch.zeros(2000, dtype=torch.float64)
        c = torch.zeros(500, dtype=torch.float64)
        del b, c

    assert benchmark.peak_bytes(work) == 8 * 2500


def test_what_is_there_is_not_measured_again(benchmark, monkeypatch):
    asked = []

    def answer(function, *arguments):
        asked.append(arguments)
        if function is benchmark.disagreement:
            return {"sweep": 0.0, "unroll": 0.0}
        quantity, engine, _ = arguments
        if engine == "torchopt":
            return {"left_out": "torchopt is not installed"}
        return {quantity: 2**20 if quantity == "bytes" else 1.0 + len(asked)}

    monkeypatch.setattr(benchmark, "in_its_own_process", answer)
    case = benchmark.Case("convnet", "adam", 10)
    result = {"command": "command", "workloads": {}, "disagreement": {}, "cells": []}
    saved = []
    benchmark.complete(result, [case], 2, lambda: saved.append(json.dumps(result)))
    engines = benchmark.engines_of(case)
    timed = [name for name in engines if name != "torchopt"]
    assert (
        "sweep" in engines
        and "sweep, 1/8" not in engines
        and benchmark.engines_of(case._replace(steps=400)) == ["sweep"]
    )
    assert len(asked) == 2 + len(engines) + 2 * len(timed)
    assert [a[1] for a in asked if a[0] == "seconds"] == 2 * timed  # the engines alternate
    (cell,) = result["cells"]
    assert all(len(cell["engines"][name]["seconds"]) == 2 for name in timed)

    stopped = json.loads(saved[len(engines) + 2])  # somewhere in the first round
    asked.clear()
    benchmark.complete(stopped, [case], 2, lambda: None)
    assert 0 < len(asked) < len(engines) + 2 * len(timed)
    assert {name: len(row.get("seconds", [])) for name, row in stopped["cells"][0]["engines"].items()} == {
        name: len(row.get("seconds", [])) for name, row in cell["engines"].items()
    }
    asked.clear()
    benchmark.complete(stopped, [case], 2, lambda: None)
    assert asked == []

    table = benchmark.markdown(result)
    assert "| torchopt | torchopt is not installed |" in table and "), 1.0 MiB |" in table
    assert "of 2 processes" in table


def test_engines_that_disagree_are_not_timed(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "in_its_own_process", lambda function, *arguments: {"sweep": 1e-3, "unroll": 0.0})
    result = {"disagreement": {}, "cells": []}
    with pytest.raises(AssertionError, match=r"sweep.*0\.001"):
        benchmark.complete(result, [benchmark.Case("convnet", "adam", 10)], 1, lambda: None)
    assert result["cells"] == []


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    out, table = tmp_path / "engines.json", tmp_path / "engines.md"
    command = [sys.executable, FOLDER / "hypergradient.py", "--quick", "--json", out, "--table", table]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    result = json.loads(out.read_text())
    (distances,) = result["disagreement"].values()
    assert {name for name, distance in distances["float32"].items() if distance != 0} <= {"higher", "torchopt"}
    assert max(distances["float64"].values()) <= 1e-8
    (cell,) = result["cells"]
    assert cell["case"] == ["convnet", "adam", 10] and {"environment", "cpu", "load"} <= set(cell)
    rows = cell["engines"]
    assert set(rows) == {"plain", "sweep", "sweep, every state", "sweep, everything", "higher", "unroll", "torchopt"}
    for name, row in rows.items():
        assert "left_out" in row if name == "torchopt" and "seconds" not in row else min(row["seconds"]) > 0
    assert 2 * rows["sweep"]["bytes"] < rows["unroll"]["bytes"]
    assert table.read_text().startswith("**convnet, adam**")
