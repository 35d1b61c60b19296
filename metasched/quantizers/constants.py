"""Cached tensors for constants: torch would cast a Python number anew in every operation, and wait for a GPU.

Not while a program is recorded, as for its export.
"""

from __future__ import annotations

from functools import lru_cache

import torch


def traced() -> bool:
    """Whether torch.compile, torch.export or torch.jit.trace runs the code to record it."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def constants(values: tuple[float, ...], like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The values as 0-d tensors with the dtype and device of ``like``. They are shared: do not write to them.

    >>> [(float(c), c.dtype) for c in constants((1.0, 0.5), torch.zeros(3, dtype=torch.float32))]
    [(1.0, torch.float32), (0.5, torch.float32)]
    """
    make = _constants.__wrapped__ if traced() else _constants  # a tracer's tensors must not be cached
    return make(values, like.dtype, like.device)


def row(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    """The values in one tensor [n], as ``constants`` has them one by one."""
    make = _row.__wrapped__ if traced() else _row
    return make(values, like.dtype, like.device)


@lru_cache(maxsize=1024)
def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode(False):  # a tensor made in inference mode, cached, could not be used in training later
        return tuple(torch.tensor(v, dtype=dtype, device=device) for v in values)


@lru_cache(maxsize=256)
def _row(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
