"""What a run does not import: parts of libraries that take longer than a short run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SLOW = (
    "optuna",
    "pandas",
    "scipy.stats",
    "sklearn",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torchvision",
    "wandb",
)


def test_a_run_imports_nothing_slow_that_it_does_not_need(config: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from metasched.cli import main
assert "torch" not in sys.modules
assert main(sys.argv[1:]) == 0
print("imported:", [name for name in {SLOW!r} if name in sys.modules])
"""
    words = [
        "train",
        str(config),
        "--folder",
        str(tmp_path / "run"),
        "--compare.baselines=[]",
        "--compare.horizons=[1]",
    ]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "imported: []", done.stdout + done.stderr
