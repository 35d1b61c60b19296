"""The table of searches for bits: one row, a ``BitSearchSpec``, per ``allocate.search``. It does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metasched.core.lazy import Lazy, origin
from metasched.core.rows import check_row

if TYPE_CHECKING:
    from metasched.search.bits.problem import BitProblem, Judge
    from metasched.search.config import AllocateConfig


@dataclass(frozen=True)
class BitSearchSpec:
    """One row of the table of searches for bits.

    Attributes:
        name: ``allocate.search``.
        summary: description in a few words.
        run: (problem, judge, settings, seed): scores allocations with the judge, which remembers them; the best that
            fits the budget is the result.
        reads: the fields of AllocateConfig that it reads and not every search does.
        by_channel: whether it gives bits by channel, and so needs ``BitProblem.channels``.
        check: (problem, settings): raises a MetaschedError where it cannot run, before anything is scored.
    """

    name: str
    summary: str
    run: Callable[[BitProblem, Judge, AllocateConfig, int], None]
    reads: tuple[str, ...] = ("evaluations",)
    by_channel: bool = False
    check: Callable[[BitProblem, AllocateConfig], object] | None = None

    @property
    def origin(self) -> str:
        """Where its code is defined."""
        return origin(self.run)


BIT_SEARCHES: dict[str, BitSearchSpec] = {}


def register_bit_search(spec: BitSearchSpec) -> BitSearchSpec:
    """Add a search to the table of this process; ``allocate.search`` can then be its name.

    Raises:
        MetaschedError: an invalid name, or a name that is in use.
    """
    check_row(BIT_SEARCHES, "allocate.search", spec)
    BIT_SEARCHES[spec.name] = spec
    return spec


for _row in (
    BitSearchSpec("greedy", "the cheapest loss for each unit saved", Lazy("metasched.search.bits.greedy:greedy"), ()),
    BitSearchSpec("knapsack", "exact for losses that add up", Lazy("metasched.search.bits.knapsack:knapsack"), ()),
    BitSearchSpec(
        "exhaustive",
        "every allocation that fits",
        Lazy("metasched.search.bits.blind:exhaustive"),
        check=Lazy("metasched.search.bits.blind:every"),
    ),
    BitSearchSpec("random", "random allocations", Lazy("metasched.search.bits.blind:random")),
    BitSearchSpec(
        "tpe",
        "tree-structured Parzen estimator",
        Lazy("metasched.search.bits.blind:tpe"),
        check=Lazy("metasched.search.bits.blind:optuna"),
    ),
    BitSearchSpec(
        "haq", "DDPG over the layers", Lazy("metasched.search.bits.haq:haq"), ("evaluations", "exploration_decay")
    ),
    BitSearchSpec(
        "autoq",
        "by channel: goals of layers, and what they leave",
        Lazy("metasched.search.bits.channels:autoq"),
        by_channel=True,
    ),
):
    register_bit_search(_row)
