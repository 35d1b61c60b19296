"""How far exact hypergradients of several inner runs agree, block by block, and the direction that they agree on.

A block is what belongs together: the numbers that move one control around one moment of the run (``blocks`` of a
schedule), or else a parameter. With the gradient g_r of run r in a block, in units of the parameters' scales,

    u_r = g_r / |g_r|,    m = mean_r u_r,    a = (R |m|^2 - 1) / (R - 1),    direction = sqrt(max(a, 0)) m / |m|

a is the unbiased estimate of |E u|^2: 1 where all R runs point the same way, 0 in the mean where they point anywhere. A
run counts by its direction alone, because norms of exploding runs differ by orders of magnitude. The depths of a block
share one weight, so that layers are pooled. Source: the mean resultant length of directional statistics (Mardia and
Jupp, Directional Statistics, 2000, section 9.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from metasched.estimators.perturbation import scales


class Agreement(NamedTuple):
    """What the runs agree on.

    Attributes:
        direction: [D] in units of the parameters' scales; each block's norm is at most 1.
        squares: {block: a}.
    """

    direction: torch.Tensor
    squares: dict[str, float]


def blocks_of(schedule: nn.Module) -> Mapping[str, Sequence[int]]:
    """{name: indices into the flat parameters} of the blocks of a schedule."""
    own = getattr(schedule, "blocks", dict[str, list[int]])()
    if own:
        return own
    found: dict[str, list[int]] = {}
    start = 0
    for name, p in schedule.named_parameters():
        found[name] = list(range(start, start + p.numel()))
        start += p.numel()
    return found


def flat(schedule: nn.Module, gradient: Sequence[torch.Tensor]) -> torch.Tensor:
    """A gradient, a tensor [...] for each parameter, in units of their scales: [D]."""
    return torch.cat([(s * g).flatten() for s, g in zip(scales(schedule).values(), gradient, strict=True)])


def unflat(schedule: nn.Module, vector: torch.Tensor) -> list[torch.Tensor]:
    """The inverse of ``flat`` for a gradient [D] in units of scales: a tensor [...] for each parameter."""
    parameters = list(schedule.parameters())
    parts = vector.split([p.numel() for p in parameters])
    found = zip(parts, parameters, scales(schedule).values(), strict=True)
    return [part.reshape(p.shape).to(p) / s for part, p, s in found]


def normalized(gradients: torch.Tensor, blocks: Mapping[str, Sequence[int]]) -> torch.Tensor:
    """Gradients [R, D] whose blocks have norm 1 each; a block that is 0 stays 0."""
    found = torch.zeros_like(gradients)
    for index in blocks.values():
        part = gradients[:, list(index)]
        largest = part.abs().amax(1, keepdim=True)  # first, so that no square overflows
        part = part / torch.where(largest > 0, largest, 1.0)
        norm = part.norm(dim=1, keepdim=True)
        found[:, list(index)] = part / torch.where(norm > 0, norm, 1.0)
    return found


def agreement(gradients: torch.Tensor, blocks: Mapping[str, Sequence[int]]) -> Agreement:
    """The agreement of finite gradients [R, D] of R >= 2 runs.

    >>> same = torch.tensor([[1.0, 0.0], [9.0, 0.0]])
    >>> agreement(same, {"a": [0, 1]}).squares, agreement(same, {"a": [0, 1]}).direction.tolist()
    ({'a': 1.0}, [1.0, 0.0])
    """
    runs = len(gradients)
    assert runs >= 2, runs
    means = normalized(gradients, blocks).mean(0)
    direction, squares = torch.zeros_like(means), dict[str, float]()
    for name, index in blocks.items():
        mean = means[list(index)]
        square = float(mean.square().sum())
        a = (runs * square - 1) / (runs - 1)
        squares[name] = a
        if a > 0:
            direction[list(index)] = math.sqrt(a) * mean / mean.norm()
    return Agreement(direction, squares)
