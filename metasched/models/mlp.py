"""A multilayer perceptron with batch normalization."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from metasched.models.table import Shape


class MLP(nn.Sequential):
    """Flatten, then ``num_hidden`` times linear - BatchNorm - ReLU, then linear to the classes.

    Hidden linear layers have no bias, because the normalization after them would cancel it.

    Args:
        in_features: number of elements of one input.
        num_classes: number of outputs.
        width: units of each hidden layer.
        num_hidden: number of hidden layers, at least 1.

    >>> sum(p.numel() for p in MLP(in_features=64, num_classes=10, width=8).parameters())
    778
    """

    def __init__(self, in_features: int, num_classes: int, width: int, num_hidden: int = 3) -> None:
        assert num_hidden >= 1, num_hidden
        modules: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i in range(1, num_hidden + 1):
            modules[f"linear{i}"] = nn.Linear(in_features if i == 1 else width, width, bias=False)
            modules[f"norm{i}"] = nn.BatchNorm1d(width)
            modules[f"act{i}"] = nn.ReLU()
        modules[f"linear{num_hidden + 1}"] = nn.Linear(width, num_classes)
        super().__init__(modules)


def build(shape: Shape, num_classes: int, width: int, depth: int) -> MLP:
    """The builder of the row in the table of models; see ModelSpec."""
    return MLP(math.prod(shape), num_classes, width, depth)
