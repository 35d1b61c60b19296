"""Bits by channel in two levels: a mean number of bits for each layer, and for each of its channels what that leaves.

    low level    of the channels of a layer, the bits with the least sum of squared errors of the rounded weights whose
                 mean is at most the layer's goal; exact, by dynamic programming over channels
    high level   the goals of all layers, by the cross-entropy method on the score of the whole network

Goals that exceed the budget are all lowered by the same number of bits until it holds.

Source of the two levels: Lou et al., "AutoQ: Automated Kernel-Wise Neural Network Quantization", ICLR 2020, arXiv
1902.05690: a controller gives each layer a goal, the mean of its bits, and another one each channel its bits.
We differ: AutoQ trains both controllers by hierarchical DDPG with relabelled goals, and its reward weighs accuracy,
latency, energy and area. There is no public code of it. Here the channels of a goal are solved exactly, which needs no
controller, and the goals are searched (Rubinstein, 1999: the mean and deviation of the best of each generation make the
next one). Weights only get bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.randomness import generator
from metasched.network.flow import Example
from metasched.network.recipe import Recipe
from metasched.network.size import FLOAT_BITS, packed_size
from metasched.search.bits.problem import BitProblem, Channels, Choice, Judge
from metasched.search.bits.rounding import rounded, turned
from metasched.search.config import AllocateConfig

_CHANNEL_BITS = 4  # that say how many bits a channel has
_GENERATION, _ELITE = 10, 3  # allocations of a generation, and those that make the next one
_SPREAD = (0.25, 0.05)  # first and least deviation of goals, in shares of the range of bits
_HALVINGS = 30  # of the step by which goals are lowered

Costs = Callable[[Sequence[int]], float]


class ChannelBits:
    """The best bits of the channels of one layer for any sum of them.

    Args:
        errors: of each channel at each number of bits, [C, B], 0 or more.
        bits: B numbers of bits, increasing.
    """

    def __init__(self, errors: npt.NDArray[np.float64], bits: Sequence[int]) -> None:
        self.bits, self.channels = tuple(bits), len(errors)
        more = [b - bits[0] for b in bits]
        sums = self.channels * more[-1] + 1
        best = np.zeros(sums)  # least error of the channels so far, whose bits beyond the least add up to at most that
        self._picked = np.zeros((self.channels, sums), np.int16)
        for c, of_channel in enumerate(errors):
            grown = np.full((len(more), sums), np.inf)
            for k, (extra, error) in enumerate(zip(more, of_channel, strict=True)):
                grown[k, extra:] = best[: sums - extra] + error
            self._picked[c] = grown.argmin(0)  # of equal ones the fewest bits
            best = grown.min(0)
        self.least = best
        self._more = more

    def at(self, goal: float) -> tuple[int, ...]:
        """The index of the bits of each channel, whose mean is at most the goal, with the least error."""
        spare = math.floor((goal - self.bits[0]) * self.channels + 1e-9)
        left = min(max(spare, 0), len(self.least) - 1)
        found = []
        for c in range(self.channels - 1, -1, -1):
            k = int(self._picked[c, left])
            found.append(k)
            left -= self._more[k]
        return tuple(reversed(found))


def with_channels(
    problem: BitProblem, model: nn.Module, recipe: Recipe, example: Example, settings: AllocateConfig
) -> BitProblem:
    """The problem with what bits by channel need: errors of the model's rounded weights, and costs.

    Raises:
        MetaschedError: a latency table limits the bits, which has times of layers only.
    """
    if settings.resource == "latency":
        fix = "set it to size or operations, or use another search"
        raise MetaschedError(
            "allocate.resource", f"has times by layer, and {settings.search} gives bits by channel", fix
        )
    roundings = [rounded(model, recipe, example, problem, b, by_channel=True) for b in problem.bits]
    alike = rounded(model, recipe, example, problem, problem.bits[0])
    channels = []
    for i, layer in enumerate(problem.layers):
        method = roundings[0].methods[i]
        w = turned(method, model.get_parameter(layer.weight_key).detach())
        errors = torch.stack([(r.weights[i] - w).square().flatten(1).sum(1) for r in roundings], 1)
        before = getattr(alike.methods[i].quantizer, "granularity", "channel")
        scales = 0 if before == "channel" else (len(w) - 1) * FLOAT_BITS // 8
        cost = _size(w[0].numel(), scales) if settings.resource == "size" else _operations(problem, i, len(w))
        channels.append(Channels(errors.to(torch.float64).numpy(), cost))
    return replace(problem, channels=tuple(channels))


def autoq(problem: BitProblem, judge: Judge, settings: AllocateConfig, seed: int) -> None:
    """Goals by the cross-entropy method, channels exactly; see the module's docstring.

    Args:
        problem, judge, settings, seed: see ``BitSearchSpec``; the problem has channels.
    """
    assert problem.channels is not None
    layers = [ChannelBits(c.errors, problem.bits) for c in problem.channels]
    low, high = problem.bits[0], problem.bits[-1]
    draws = generator(seed, "goals")
    mean = torch.full((len(layers),), 0.5, dtype=torch.float64)
    spread = torch.full_like(mean, _SPREAD[0])
    done = 0
    while done < settings.evaluations:
        size = min(_GENERATION, settings.evaluations - done)
        goals = (mean + spread * torch.randn(size, len(layers), generator=draws, dtype=torch.float64)).clamp(0, 1)
        if done == 0:
            goals[0] = mean
        scored = [(judge(lowered(problem, layers, (low + (high - low) * g).tolist())), g) for g in goals]
        elite = torch.stack([g for _, g in sorted(scored, key=lambda entry: -entry[0])[:_ELITE]])
        mean, spread = elite.mean(0), elite.std(0, correction=0).clamp_min(_SPREAD[1])
        done += size


def lowered(problem: BitProblem, layers: Sequence[ChannelBits], goals: Sequence[float]) -> Choice:
    """The bits of all channels for the goals of the layers, all of them lowered alike as far as the budget needs.

    The number of bits by which they are lowered is found by 30 halvings; if no number will do, all channels have the
    cheapest bits.
    """

    def at(less: float) -> Choice:
        return tuple(layer.at(max(goal - less, problem.bits[0])) for layer, goal in zip(layers, goals, strict=True))

    if problem.fits(found := at(0.0)):
        return found
    few, many = 0.0, float(problem.bits[-1] - problem.bits[0])
    if not problem.fits(found := at(many)):
        return problem.cheapest  # bits by channel cost a little themselves
    for _ in range(_HALVINGS):
        middle = (few + many) / 2
        few, many = (few, middle) if problem.fits(at(middle)) else (middle, many)
    return at(many)


def _size(weights: int, scales: int) -> Costs:
    """Bytes of a layer with so many weights a channel: packed levels, numbers of bits, scales beyond those by layer."""

    def cost(bits: Sequence[int]) -> float:
        different = sorted({*bits})
        packed = sum(packed_size(bits.count(b) * weights, b) for b in different)
        said = packed_size(len(bits), _CHANNEL_BITS) if len(different) > 1 else 0
        return float(packed + said + scales)

    return cost


def _operations(problem: BitProblem, layer: int, channels: int) -> Costs:
    each = problem.cost[layer][0] / problem.bits[0] / channels  # of one bit of one channel

    def cost(bits: Sequence[int]) -> float:
        return each * sum(bits)

    return cost
