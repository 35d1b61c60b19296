"""How the checks of a script end: they are shown, written with what they ran on, and decide the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text


def ended(checks: Mapping[str, Mapping[str, Any]], told: Mapping[str, Any], path: Path | None) -> int:
    """Shows the checks, writes the result, and returns the exit code: 0 where all have passed, else 1.

    Args:
        checks: name -> ``passed``, and what was ``found`` where that is a number.
        told: what the result file holds besides the checks and the environment.
        path: of the file; None: none is written.
    """
    for name, check in checks.items():
        print(f"{name}: {check.get('found', '')} {'passed' if check['passed'] else 'MISSED'}")
    if path:
        kept = {**told, "checks": checks, "environment": environment()}
        write_atomic(path, (json_text(kept, indent=1) + "\n").encode())
    return int(not all(check["passed"] for check in checks.values()))
