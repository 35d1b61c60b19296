"""Keeps the comparison of a run folder as a small result file, with the command, versions and hardware.

python scripts/keep_result.py RUN experiments/results/NAME.json --command "metasched train experiments/NAME.yaml"
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metasched.files import cpu_model, json_text, write_atomic


def result(comparison: dict[str, Any], environment: dict[str, Any], command: str, cpu: str) -> dict[str, Any]:
    """What experiments/results/*.json hold."""
    versions = {name: environment[name] for name in ("metasched", "python", "torch", "numpy", "higher")}
    hardware = f"{cpu}, {environment['cpu_count']} cores, one thread a run, device {environment['device']}"
    return {**comparison, "command": command, "versions": versions, "hardware": hardware}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the run folder, write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--command", required=True, help="what made the run")
    arguments = parser.parse_args(argv)
    comparison = json.loads((arguments.run / "comparison.json").read_text("utf-8"))
    environment = json.loads((arguments.run / "environment.json").read_text("utf-8"))
    kept = result(comparison, environment, arguments.command, cpu_model())
    write_atomic(arguments.output, (json_text(kept, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
