"""The environment of a run: versions, processor, threads, device, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

INNER_THREADS = 1  # of each process during inner runs; the last bits of a sum depend on their number


def version(package: str = "metasched") -> str | None:
    """The installed version of a package; None if it is not installed, for instance a source tree on the path."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of the packages that the values of a schedule depend on."""
    names = ("metasched", "torch", "numpy", "higher")
    return {name: found for name in names if (found := version(name)) is not None}


def cpu_model() -> str:
    """Name of the processor on Linux; elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment() -> dict[str, Any]:
    """Everything besides the configuration that affects the bits of a run: versions, processor, threads, device, code.

    ``threads`` is the current number of threads of this process; ``inner_threads`` is that of each process during inner
    runs, which affects the bits of a schedule and of its scores. Host, user and paths are not included.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("metasched", "torch", "numpy", "higher")},
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "onednn": torch.backends.mkldnn.is_available(),
        "threads": torch.get_num_threads(),
        "inner_threads": INNER_THREADS,
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """Commit of the checkout of this package, and whether tracked files differ from it; None without a checkout."""
    here = Path(__file__)

    def ask(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", here.name) is None:  # an installed package, or no git
        return None
    commit, changes = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}
