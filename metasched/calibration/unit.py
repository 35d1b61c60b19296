"""A unit of calibration: a layer with what comes right after it, or a block; its inputs, and what it is to put out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from metasched.calibration.batches import Call
from metasched.calibration.following import Function
from metasched.core.layer import Layer
from metasched.methods.base import Method, State

INNER = "inner"  # the name of the layer or block in its segment


class Rounded(NamedTuple):
    """What becomes of a layer.

    Attributes:
        method: of the deployed layer: its ``harden`` gives the weight.
        weight: on its values, in the shape that it has in the module.
        state: of the method, in its orientation.
        details: numbers to report.
    """

    method: Method
    weight: torch.Tensor
    state: State
    details: dict[str, float]


class Segment(nn.Module):
    """A layer or block in eval mode, and after it the normalization and activation that follow it in the network.

    The weights of the given layers are its parameters; all other tensors are buffers, and so stand still when it is
    trained. Batch normalization is the affine map that it is in eval mode.

    Args:
        inner: the layer or block; it is copied, as is the rest.
        norm: a batch normalization, or None.
        activation: a module or a function, or None.
        weights: names of the weights in ``inner``.
    """

    def __init__(
        self, inner: nn.Module, norm: nn.Module | None, activation: nn.Module | Function | None, weights: Iterable[str]
    ) -> None:
        super().__init__()
        self.inner = copy.deepcopy(inner).eval()
        self.norm = None if norm is None else copy.deepcopy(norm).eval()
        self.activation = copy.deepcopy(activation).eval() if isinstance(activation, nn.Module) else None
        self.function = None if isinstance(activation, nn.Module) else activation
        trained = {f"{INNER}.{name}" for name in weights}
        for name, m in self.named_modules():
            for key, p in list(m._parameters.items()):
                if p is not None and f"{name}.{key}".lstrip(".") not in trained:
                    del m._parameters[key]
                    m.register_buffer(key, p.detach().clone())
        _make_affine(self)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The output [N, ...] for the arguments of the layer or block."""
        return self.after(first_tensor(self.inner(*args, **kwargs)))

    def after(self, y: torch.Tensor) -> torch.Tensor:
        """What the normalization and the activation make of an output y [N, ...] of the layer or block."""
        y = self.norm(y) if isinstance(self.norm, nn.Module) else y
        y = self.activation(y) if isinstance(self.activation, nn.Module) else y
        return y if self.function is None else self.function(y)

    def train(self, mode: bool = True) -> Segment:
        """As in torch, but what is inside stays in eval mode."""
        self.training = mode
        return self


class _Affine(nn.Module):
    """Batch normalization in eval mode: x a + b by channel."""

    factor: torch.Tensor
    shift: torch.Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        factor = (norm.running_var + norm.eps).rsqrt()
        factor = factor if norm.weight is None else factor * norm.weight
        shift = -norm.running_mean * factor
        self.register_buffer("factor", factor.detach().clone())
        self.register_buffer("shift", (shift if norm.bias is None else shift + norm.bias).detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * self.factor.reshape(shape) + self.shift.reshape(shape)


def _make_affine(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and child.running_mean is not None:
            setattr(module, name, _Affine(child))
        else:
            _make_affine(child)


@dataclass(frozen=True)
class Unit:
    """What a procedure works on.

    Attributes:
        name: of the layer or block.
        segment: the float one.
        layers: its L quantized layers in the order of execution; their keys are names in the segment.
        methods: the method of each deployed layer, with its levels and the rule of its scale; without activations.
        calls: its inputs in the network whose earlier layers are quantized, batch by batch.
        raw: what the layer or block puts out in the float network, without what follows, [N, ...], batch by batch.
        targets: what the segment makes of that, batch by batch.
        seed: of random numbers.
        tick: is called with the share in [0, 1] of the work that is done.
    """

    name: str
    segment: Segment
    layers: tuple[Layer, ...]
    methods: tuple[Method, ...]
    calls: list[Call]
    raw: list[torch.Tensor]
    targets: list[torch.Tensor]
    seed: int
    tick: Callable[[float], None]

    def weight(self, i: int) -> torch.Tensor:
        """The float weight of layer i, [C_out, ...] or as its module has it."""
        return self.segment.get_parameter(self.layers[i].weight_key).detach()

    @property
    def channels(self) -> int:
        """Output channels of the last layer: the loss is a sum over them."""
        return self.raw[0].shape[1] if self.layers[-1].kind == "conv" else self.raw[0].shape[-1]

    @torch.no_grad()
    def outputs(self, weights: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs [N, ...] of the segment with these weights of the layers, batch by batch."""
        segment = copy.deepcopy(self.segment)
        for layer, w in zip(self.layers, weights, strict=True):
            segment.get_parameter(layer.weight_key).copy_(w)
        return [segment(*args, **kwargs) for args, kwargs in self.calls]

    def error(self, weights: Iterable[torch.Tensor]) -> float:
        """The relative squared error sum |y - t|^2 / sum |t|^2 of the outputs y with these weights of the layers."""
        return self.distance(self.outputs(weights), self.targets)

    def by_channel(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """The squared error of outputs [N, ...], batch by batch, for each channel: [C], float64."""
        dim = 1 if self.layers[-1].kind == "conv" else -1
        wrong = [(a - b).double().square().movedim(dim, 0) for a, b in zip(outputs, self.targets, strict=True)]
        return torch.stack([e.flatten(1).sum(1) for e in wrong]).sum(0)

    def distance(self, some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
        """Sum of the squared differences of outputs [N, ...], batch by batch, over that of the targets."""
        wrong = sum(float((a - b).double().square().sum()) for a, b in zip(some, others, strict=True))
        right = sum(float(t.double().square().sum()) for t in self.targets)
        return wrong / right if right else (0.0 if wrong == 0 else float("inf"))


def first_tensor(outputs: Any) -> torch.Tensor:
    """The first tensor of the outputs of a module: of attention and of transformer blocks these are several."""
    return next(t for t in tree_leaves(outputs) if isinstance(t, torch.Tensor))


def joined(calls: list[Call]) -> Call:
    """Calls as one of all examples: tensors whose first dimension counts them are put together, others are the first's.

    >>> (x,), kwargs = joined([((torch.ones(2, 3),), {"mask": None}), ((torch.zeros(1, 3),), {"mask": None})])
    >>> x.shape, kwargs
    (torch.Size([3, 3]), {'mask': None})
    """
    flat = [tree_flatten(call) for call in calls]
    counts = [len(next(t for t in leaves if isinstance(t, torch.Tensor))) for leaves, _ in flat]

    def of_all(column: tuple[Any, ...]) -> Any:
        counted = all(
            isinstance(t, torch.Tensor) and t.dim() > 0 and len(t) == n for t, n in zip(column, counts, strict=True)
        )
        return torch.cat(column) if counted else column[0]

    return tree_unflatten([of_all(column) for column in zip(*(leaves for leaves, _ in flat), strict=True)], flat[0][1])
