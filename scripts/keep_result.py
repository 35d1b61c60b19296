"""Saves the comparison of a run folder as a small result file, with command, versions and hardware.

python scripts/keep_result.py RUN experiments/results/NAME.json --command "metasched train experiments/NAME.yaml"
python scripts/keep_result.py RUN experiments/results/NAME_deploy.json --deployed FOLDER --command "..."

With --deployed it saves the account of the deployed network of the run, and CUTIE's limits, instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, version
from metasched.io.json_text import json_text


def result(comparison: dict[str, Any], environment: dict[str, Any], command: str, cpu: str) -> dict[str, Any]:
    """The content of a result file in experiments/results."""
    versions = {name: environment[name] for name in ("metasched", "python", "torch", "numpy", "higher")}
    hardware = f"{cpu}, {environment['cpu_count']} cores, one thread a run, device {environment['device']}"
    return {**comparison, "command": command, "versions": versions, "hardware": hardware}


def deployed(folder: Path) -> dict[str, Any]:
    """The account and limits in the folder of a deployed network, which ran on all test images, from one seed."""
    account = json.loads((folder / "account.json").read_text("utf-8"))
    limits = json.loads((folder / "cutie" / "limits.json").read_text("utf-8"))
    return {"n": 1, **account, "cutie": limits}


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the run folder and writes the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--command", required=True, help="command of the run")
    parser.add_argument("--deployed", type=Path, metavar="FOLDER", help="keep the account of this deployed network")
    arguments = parser.parse_args(argv)
    environment = json.loads((arguments.run / "environment.json").read_text("utf-8"))
    if arguments.deployed:
        kept = result(deployed(arguments.deployed), environment, arguments.command, cpu_model())
        kept["versions"] |= {name: found for name in ("onnx", "onnxruntime", "qonnx") if (found := version(name))}
    else:
        comparison = json.loads((arguments.run / "comparison.json").read_text("utf-8"))
        kept = result(comparison, environment, arguments.command, cpu_model())
    write_atomic(arguments.output, (json_text(kept, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
