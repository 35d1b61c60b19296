"""Bits by layer under a budget: the choices, what they cost, and the judge that remembers what was tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer

Bits = int | tuple[int, ...]  # the index of a layer's bits in ``BitProblem.bits``, or one for each output channel
Choice = tuple[Bits, ...]  # of all layers
_ROUNDING = 1e-9  # relative: a cost that equals the budget fits, whatever the order of its sum


@dataclass(frozen=True, eq=False)
class Channels:
    """What bits by channel need of a layer of C channels.

    Attributes:
        errors: squared error of each channel's weights at each number of bits, [C, B].
        cost: from the bits of each channel to the cost of the layer.
    """

    errors: npt.NDArray[np.float64]
    cost: Callable[[Sequence[int]], float]


@dataclass(frozen=True)
class BitProblem:
    """L layers with B choices of bits each; the sum of their costs may not exceed the budget.

    Attributes:
        layers: what gets bits, L.
        bits: the choices, increasing.
        cost: [L][B], in the unit of the resource, 0 or more. More bits may cost less, as in a latency table.
        fixed: cost of all that gets no bits.
        budget: for the whole network, ``fixed`` included.
        unit: of the cost.
        macs: multiply-accumulates of each layer in a pass of one example batch, [L].
        channels: of each layer, for searches that give bits by channel; None for others.
    """

    layers: tuple[Layer, ...]
    bits: tuple[int, ...]
    cost: tuple[tuple[float, ...], ...]
    fixed: float
    budget: float
    unit: str
    macs: tuple[int, ...]
    channels: tuple[Channels, ...] | None = None

    def __post_init__(self) -> None:
        assert len(self.cost) == len(self.layers) == len(self.macs) and all(len(c) == len(self.bits) for c in self.cost)

    def total(self, choice: Choice) -> float:
        """What an allocation costs, in all."""
        return self.fixed + sum(self.cost_of(layer, b) for layer, b in enumerate(choice))

    def cost_of(self, layer: int, b: Bits) -> float:
        """What a layer costs at the index of its bits, or at one for each channel."""
        if isinstance(b, int):
            return self.cost[layer][b]
        assert self.channels is not None
        return self.channels[layer].cost([self.bits[i] for i in b])

    def fits(self, choice: Choice) -> bool:
        """Whether the budget allows it."""
        return self.total(choice) <= self.budget * (1 + _ROUNDING)

    @property
    def highest(self) -> tuple[int, ...]:
        """The most bits everywhere."""
        return (len(self.bits) - 1,) * len(self.layers)

    @property
    def cheapest(self) -> tuple[int, ...]:
        """The cheapest choice of each layer; of equal ones that with most bits."""
        best = range(len(self.bits))
        return tuple(min(best, key=lambda b, row=row: (row[b], -b)) for row in self.cost)

    def bits_of(self, choice: Choice) -> dict[str, int | str]:
        """{layer: bits}; of bits by channel one digit for each."""
        return {
            layer.name: self.bits[b] if isinstance(b, int) else "".join(str(self.bits[i]) for i in b)
            for layer, b in zip(self.layers, choice, strict=True)
        }

    def lower(self, layer: int, b: int) -> int | None:
        """The next choice of fewer bits that costs less; None if there is none."""
        row = self.cost[layer]
        return next((c for c in range(b - 1, -1, -1) if row[c] < row[b]), None)

    def within(self, choice: tuple[int, ...], order: Sequence[int] | None = None) -> tuple[int, ...]:
        """The allocation with fewer bits where it exceeds the budget.

        As in HAQ, layer after layer gives one step of bits, from the last one backwards, again and again until the
        budget holds. If no layer can give more, each gets its cheapest choice.

        Args:
            choice: any allocation.
            order: in which layers give; default: from the last to the first.
        """
        now = list(choice)
        order = range(len(now) - 1, -1, -1) if order is None else order
        gave = True
        while gave:
            gave = False
            for layer in order:
                if self.fits(tuple(now)):
                    return tuple(now)
                if (less := self.lower(layer, now[layer])) is not None:
                    now[layer], gave = less, True
        return tuple(now) if self.fits(tuple(now)) else self.cheapest

    def feasible(self) -> Iterator[tuple[int, ...]]:
        """All allocations that fit, in lexical order."""
        least = [min(row) for row in self.cost]
        rest = [sum(least[i:]) for i in range(len(least) + 1)]
        most = self.budget * (1 + _ROUNDING) - self.fixed

        def after(begun: tuple[int, ...], spent: float) -> Iterator[tuple[int, ...]]:
            layer = len(begun)
            if layer == len(self.layers):
                yield begun
                return
            for b, cost in enumerate(self.cost[layer]):
                if spent + cost + rest[layer + 1] <= most:
                    yield from after((*begun, b), spent + cost)

        return after((), 0.0)

    def check(self) -> None:
        """Refuses a budget that nothing fits.

        Raises:
            MetaschedError: the cheapest allocation exceeds it.
        """
        least = self.total(self.cheapest)
        if least > self.budget * (1 + _ROUNDING):
            problem = f"is {self.budget:,.6g} {self.unit}, and the network takes at least {least:,.6g} with these bits"
            raise MetaschedError("allocate.budget", problem, "raise it, or allow fewer bits with allocate.bits")


class Tried(NamedTuple):
    """An allocation that was scored: its choice, its score (higher is better; -inf where it is no number), its cost."""

    choice: Choice
    score: float
    cost: float


class Judge:
    """Scores allocations, each once, and remembers them in order.

    Args:
        problem: says what fits.
        score: of an allocation, higher is better.
        seen: called with each new allocation.
    """

    def __init__(
        self, problem: BitProblem, score: Callable[[Choice], float], seen: Callable[[Tried], None] | None = None
    ) -> None:
        self._problem, self._score, self._seen = problem, score, seen
        self._known: dict[Choice, float] = {}
        self.tried: list[Tried] = []

    def __call__(self, choice: Choice) -> float:
        """The score of an allocation, whether or not it fits."""
        if choice not in self._known:
            score = self._score(choice)
            self._known[choice] = -math.inf if math.isnan(score) else score
            self.tried.append(Tried(choice, self._known[choice], self._problem.total(choice)))
            if self._seen is not None:
                self._seen(self.tried[-1])
        return self._known[choice]

    @property
    def best(self) -> Tried:
        """The best that fits; of equal ones the cheapest, and the first."""
        fitting = [t for t in self.tried if self._problem.fits(t.choice)]
        assert fitting, "a search tries something that fits"
        return min(fitting, key=lambda t: (-t.score, t.cost))
