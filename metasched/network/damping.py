"""Gradients of a method's trainable tensors, multiplied by its factors on the way to the optimizer."""

from __future__ import annotations

import torch


def damped(p: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """P [...], whose gradient ``backward`` multiplies by a factor that broadcasts to it."""
    return torch.lerp(p.detach(), p, factor)  # p + factor * 0, in one operation
