"""Parameters that are sharded over processes (FSDP2): their whole values outside of forward, and back."""

from __future__ import annotations

import torch


def whole(p: torch.Tensor) -> torch.Tensor:
    """The whole tensor [...], of a sharded one by a collective call, without a graph; others as they are."""
    return p.detach().full_tensor() if sharded(p) else p  # pyright: ignore[reportAttributeAccessIssue]


def put(p: torch.Tensor, value: torch.Tensor) -> None:
    """Writes a whole value [...] into a tensor of its shape; each process writes its part of a sharded one."""
    if not sharded(p):
        p.copy_(value)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(p, DTensor)
    if not sharded(value):
        value = distribute_tensor(value.detach().reshape(p.shape), p.device_mesh, p.placements, src_data_rank=None)
    p.copy_(value)


def sharded(p: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor; torch.distributed is not imported for it."""
    return type(p) is not torch.Tensor and hasattr(p, "full_tensor")
