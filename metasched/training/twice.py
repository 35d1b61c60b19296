"""Batch normalizations whose gradients are differentiated in closed form, in a step that keeps its graph.

By the statistics of the batch, on the CPU, where it was measured; everything else is called as it is. Values and
gradients keep their bits; derivatives of gradients agree up to rounding. torch has no third ones, nor are there here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from metasched.core.twice import closed
from metasched.network.redirecting import innermost_checkpoint
from metasched.training.twice_norm import batch_norm


@contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """Within: batch normalizations inside, or the module itself, have closed forms."""
    swapped = [(m, forward) for m in module.modules() if (forward := _forward(m)) is not None] if closed() else []
    for m, forward in swapped:
        m.__dict__["forward"] = forward
    try:
        yield
    finally:
        for m, _ in swapped:
            m.__dict__.pop("forward", None)


def _forward(m: nn.Module) -> Callable[..., torch.Tensor] | None:
    """What may be called in place of a module's own forward."""
    if not isinstance(m, _BatchNorm) or type(m).forward is not _BatchNorm.forward or "forward" in m.__dict__:
        return None
    return partial(_norm, m) if m.training and m.affine and m.momentum is not None else None


def _norm(m: Any, x: torch.Tensor) -> torch.Tensor:
    if x.numel() == m.num_features or not _usual(x):
        return type(m).forward(m, x)
    m._check_input_dim(x)
    if m.num_batches_tracked is not None:
        m.num_batches_tracked.add_(1)
    return batch_norm(x, m.weight, m.bias, m.running_mean, m.running_var, m.momentum, m.eps)


def _usual(x: torch.Tensor) -> bool:
    """Not on a GPU, under autocast, or in a checkpoint: its second run is not within ``twice_differentiable``."""
    return x.is_cpu and not torch.is_autocast_enabled("cpu") and innermost_checkpoint() is None and closed()
