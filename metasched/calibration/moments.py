"""Second moments of a layer's inputs, from which the error of its outputs follows for any weight.

For the inputs x of one output (of a convolution the patch under the kernel), d of them in each of G groups, and the
float output y without bias, sums over all examples and places give

    gram  [G, d, d] = sum x x^T        cross [G, R, d] = sum y x^T        power [G, R] = sum y^2

with R output channels a group. The squared error of the weights w [G, R, d] is power - 2 cross . w + w gram w^T.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from metasched.calibration.unit import INNER, Unit
from metasched.core.errors import MetaschedError
from metasched.methods.oriented import Oriented


class Moments(NamedTuple):
    """See the module's docstring; in float64."""

    gram: torch.Tensor
    cross: torch.Tensor
    power: torch.Tensor

    def error(self, w: torch.Tensor) -> torch.Tensor:
        """The squared error of each output channel, [G, R], at the weights w [G, R, d]."""
        return self.power - 2 * (self.cross * w).sum(-1) + ((w @ self.gram) * w).sum(-1)


@torch.no_grad()
def moments_of(unit: Unit) -> Moments:
    """The moments of a unit that is one layer.

    Raises:
        MetaschedError: it is none whose outputs are sums over inputs that can be laid out.
    """
    layer = layer_of(unit)
    groups, bias = groups_of(layer), getattr(layer, "bias", None)
    total: Moments | None = None
    for ((x, *_), _), raw in zip(unit.calls, unit.raw, strict=True):
        inputs = patches(layer, x).double()  # [G, P, d]
        y = raw.movedim(1, -1) if isinstance(layer, nn.Conv1d | nn.Conv2d) else raw
        y = y.reshape(-1, y.shape[-1]).double()
        y = (y if bias is None else y - bias).reshape(len(y), groups, -1).movedim(1, 0)  # [G, P, R]
        found = Moments(inputs.mT @ inputs, y.mT @ inputs, y.square().sum(1))
        total = found if total is None else Moments(*(a + b for a, b in zip(total, found, strict=True)))
    assert total is not None
    return total


def layer_of(unit: Unit) -> nn.Module:
    """The layer that a unit is.

    Raises:
        MetaschedError: it is a block, or a layer of another kind.
    """
    layer = unit.segment.get_submodule(INNER)
    own = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) or type(layer).__name__ == "Conv1D"
    if not own or len(unit.layers) != 1 or not unit.layers[0].weight_key == f"{INNER}.weight":
        problem = f"is a {type(layer).__name__}, and this takes linear layers and convolutions of one or two dimensions"
        raise MetaschedError(f"model.{unit.name}", problem, "use adaround or nearest, or leave it out by a rule")
    return layer


def groups_of(layer: nn.Module) -> int:
    """Number of groups G of a layer."""
    return layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1


def rows_of(unit: Unit, w: torch.Tensor) -> torch.Tensor:
    """The weight w of the unit's layer as rows [G, R, d]."""
    method = unit.methods[0]
    w = method.turned(w) if isinstance(method, Oriented) else w
    return w.reshape(groups_of(layer_of(unit)), -1, w[0].numel())


def weight_of(unit: Unit, rows: torch.Tensor) -> torch.Tensor:
    """Rows [G, R, d] in the shape and dtype of the weight of the unit's layer."""
    method, like = unit.methods[0], unit.weight(0)
    if isinstance(method, Oriented):
        return method.turned(rows.reshape(method.turned(like).shape)).to(like)
    return rows.reshape(like.shape).to(like)


def patches(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The inputs of each output of a layer, [G, P, d] for P outputs, from its input x.

    >>> conv = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2, bias=False)
    >>> x = torch.randn(5, 4, 8, 8)
    >>> outputs = patches(conv, x) @ conv.weight.reshape(2, 3, -1).mT
    >>> bool(torch.allclose(outputs.movedim(0, 1).reshape(5, 4, 4, 6), conv(x).movedim(1, -1), atol=1e-5))
    True
    """
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return x.reshape(1, -1, x.shape[-1])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    size, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if isinstance(layer, nn.Conv1d):
        x, size, dilation, stride = x.unsqueeze(2), (1, *size), (1, *dilation), (1, *stride)
    columns = F.unfold(x, size, dilation, 0, stride)  # [N, C_in k, L]
    n, _, places = columns.shape
    return columns.reshape(n, layer.groups, -1, places).permute(1, 0, 3, 2).reshape(layer.groups, n * places, -1)
