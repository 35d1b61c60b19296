"""The benchmark of the kernels: what it says without a GPU, and that it runs on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from loading import loaded

SCRIPT = Path(__file__).parents[3] / "scripts" / "benchmarks" / "transition_kernel.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return loaded(SCRIPT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--json", str(tmp_path / "out.json")]) == 2
    assert capsys.readouterr().err == "--device: torch sees no CUDA device here; give --device cpu\n"
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_it_runs_on_the_cpu(benchmark: ModuleType, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    out = tmp_path / "out.json"
    assert benchmark.main(["--json", str(out), "--device", "cpu", "--weights", "5000", "--repeats", "2"]) == 0
    result = json.loads(out.read_text())
    assert result["same_bits"] and result["transition"]["weights"] == 5000
    assert result["transition"]["share_of_copy_bandwidth"] > 0
    assert [row["n"] for row in result["products"]] == [2, 2]
