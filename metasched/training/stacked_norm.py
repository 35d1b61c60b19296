"""Batch normalization that torch.vmap maps as one normalization of N times as many channels.

torch's own rule normalizes first and scales afterwards, which is slower and rounds differently from the operation that
it maps. This one calls that operation.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn
from torch._C._functorch import is_batchedtensor  # pyright: ignore
from torch.nn import functional as F

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def with_mapped_norms(module: nn.Module) -> nn.Module:
    """A copy for training under torch.vmap, with parameters and buffers of the same names."""
    module = copy.deepcopy(module)
    for name, norm in list(module.named_modules()):
        if type(norm) in _KINDS and name and norm.momentum is not None:
            module.set_submodule(name, _Norm(cast(nn.BatchNorm1d, norm)))
    return module


class _Norm(nn.Module):
    """A batch normalization in training mode, with the parameters and buffers of the one that it stands for."""

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.momentum, self.eps = norm.momentum, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = {**self._parameters, **self._buffers}
        if (batches := own.get("num_batches_tracked")) is not None:
            batches.add_(1)
        given = [own.get(name) for name in ("running_mean", "running_var", "weight", "bias")]
        if not is_batchedtensor(x):  # the pass before the first step, one run at a time
            return F.batch_norm(x, *given, True, self.momentum, self.eps)  # pyright: ignore
        return _BatchNorm.apply(x, *given, self.momentum, self.eps)


class _BatchNorm(torch.autograd.Function):
    """``F.batch_norm`` by the statistics of the batch, for torch.vmap alone. Running statistics change in place."""

    @staticmethod
    def forward(*inputs: Any) -> torch.Tensor:
        raise AssertionError("outside torch.vmap the module itself is called")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        raise AssertionError("outside torch.vmap the module itself is called")

    @staticmethod
    def vmap(  # pyright: ignore
        info: Any, in_dims: tuple[int | None, ...], x: torch.Tensor, *rest: Any
    ) -> tuple[torch.Tensor, int]:
        *tensors, momentum, eps = rest
        runs = info.batch_size
        x = x.expand(runs, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        _, examples, channels, *size = x.shape
        assert all(t is None or dim == 0 for t, dim in zip(tensors, in_dims[1:5], strict=True)), "all are stacked"
        mean, var, weight, bias = (None if t is None else t.view(-1) for t in tensors)
        joined = x.transpose(0, 1).reshape(examples, runs * channels, *size)
        y = F.batch_norm(joined, mean, var, weight, bias, True, momentum, eps)
        return y.reshape(examples, runs, channels, *size), 1
