"""The example of one's own loop, from a float model to integers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_loop.py"


def test_it_trains_converts_and_deploys(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore::UserWarning", str(EXAMPLE), "--steps", "60"]
    ended = subprocess.run([*command, "--folder", str(tmp_path / "d")], capture_output=True, text=True, check=True)
    hard, integers = re.findall(r"0\.\d+", ended.stdout)
    assert float(hard) > 0.7 and abs(float(hard) - float(integers)) < 0.02
    assert (tmp_path / "d" / "network.json").is_file()
