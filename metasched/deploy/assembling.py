"""Folds a hardened network of modules, stage by stage, into an integer network with the same function.

Supported are convolution or linear, batch normalization, quantized activation, with max or average pooling anywhere
between them, sums of two tensors (see sums.py), and optionally a thermometer before the first layer. Pooling before an
activation is applied to the sums: average pooling commutes with batch normalization, and max pooling does after
channels with negative gamma have been negated. The last layer may be unquantized: its weights are converted to fixed
point with 24 bits, the precision of float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.deploy.flow import flow
from metasched.deploy.folding import Activation, Folding
from metasched.deploy.layers import fold_step, fold_sum
from metasched.deploy.operations import Sum
from metasched.deploy.stages import IntegerNetwork
from metasched.network.flat import Tensors
from metasched.quantizers.levels import LevelSet


def folded(
    network: nn.Module,
    tensors: Tensors,
    weights: Mapping[str, tuple[LevelSet, torch.Tensor]],
    activation: Callable[[nn.Module], Activation | None],
    example: torch.Tensor,
    step: Fraction,
) -> IntegerNetwork:
    """The integer network of a network of modules.

    Args:
        network: is traced, see flow.py.
        tensors: hard parameters and buffers by name.
        weights, activation: see ``Folding``.
        example: input [N, C, H, W]; only its shape is used.
        step: real value of 1 in the input codes.

    Raises:
        MetaschedError: a layer has no integer form; the message names it.
    """
    if not isinstance(example, torch.Tensor) or example.dim() != 4:
        has = f"has shape {list(example.shape)}" if isinstance(example, torch.Tensor) else "is not one tensor"
        problem = f"{has}, and images [N, C, H, W] are coded"
        raise MetaschedError(
            "example", problem, "give vectors as [N, C, 1, 1] with a Flatten, sequences as [N, C, 1, L]"
        )
    channels, height, width = example.shape[1:]
    folding = Folding(tensors, weights, activation, (channels, height, width), step)
    values, steps = [folding.value()], flow(network)
    reads = Counter(i for step in steps for i in step.inputs)
    for name, operation, inputs in steps:
        first, *second = (values[i + 1] for i in inputs)
        if second:
            fold_sum(folding, name, first, *second)
        else:
            folding.go_to(first)
            alone = reads[inputs[0]] == 1 and isinstance(steps[inputs[0]].operation, Sum)
            fold_step(folding, name, operation, sum_alone=alone)
        values.append(folding.value())
    folding.finish()
    return IntegerNetwork((channels, height, width), step, tuple(folding.stages))
