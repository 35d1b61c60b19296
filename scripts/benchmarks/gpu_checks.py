r"""One check of scripts/gpu_checks.sh: it is run, and what it finds is written into a JSON file, part after part.

    python scripts/benchmarks/gpu_checks.py stacked --json gpu_checks.json

A check that fails says why in its part of the file, and leaves the other parts as they are. ``--device cpu`` runs it on
small tensors, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("kernels", "devices", "stacked", "hypergradients", "vgg8", "tests")


def read(path: Path) -> dict[str, Any]:
    """What the file has; nothing if there is none."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def write(path: Path, result: dict[str, Any]) -> None:
    """Replace the file at once. Nothing but the standard library is needed: what else is missing can be said in it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def merged(path: Path, name: str, found: dict[str, Any]) -> None:
    """Add what a check has found to its part of the file."""
    result = read(path)
    result.setdefault("checks", {}).setdefault(name, {}).update(found)
    write(path, result)


def described(path: Path, device: str) -> None:
    """Write where it runs: the name of the device, its memory, versions and processor."""
    import torch

    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        memory, capability = properties.total_memory, f"{properties.major}.{properties.minor}"
        write(path, {"device": properties.name, "memory": memory, "capability": capability, **read(path)})

    from metasched.io.environment import cpu_model, environment

    write(path, {"device": cpu_model(), "environment": environment(), **read(path)})


def run(name: str, path: Path, device: str) -> int:
    """Run a check; 0 if it came to its end and what it compares agrees, else 1."""
    start = time.perf_counter()

    def save(found: dict[str, Any]) -> None:
        merged(path, name, {**found, "seconds": round(time.perf_counter() - start, 1)})
        print(f"{name}: {json.dumps(found, default=str)[:2000]}", flush=True)

    merged(path, name, {"state": "started"})
    try:
        described(path, device)
        import gpu_work

        if why := gpu_work.CHECKS[name](device, save):
            save({"state": "left out", "why": why})
            return 0
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {str(error)[:2000]} ({Path(last.filename).name}:{last.lineno})"
        save({"state": "failed", "why": why})
        traceback.print_exc()
        return 1
    save({"state": "done"})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check that is asked for, or note why it has no result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, metavar="OUT", required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--left-out", metavar="WHY", help="only note that the check was left out")
    parser.add_argument("--ended", type=int, metavar="STATUS", help="only note how its process was ended")
    arguments = parser.parse_args(argv)
    if arguments.left_out is not None:
        merged(arguments.json, arguments.name, {"state": "left out", "why": arguments.left_out})
        return 0
    if arguments.ended is not None:
        why = "its time was up" if arguments.ended in (124, 137) else f"its process ended with {arguments.ended}"
        merged(arguments.json, arguments.name, {"state": "ended", "why": why})
        return 0
    return run(arguments.name, arguments.json, arguments.device)


if __name__ == "__main__":
    sys.exit(main())
