"""The table of kinds of arms: one row, an ``ArmSpec``, per ``kind`` of ``arena.arms``. It does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metasched.core.lazy import Lazy, origin

if TYPE_CHECKING:
    from metasched.arena.arms import Planned, Setting
    from metasched.arena.config import ArmEntry


@dataclass(frozen=True)
class ArmSpec:
    """One row of the table of kinds of arms.

    Attributes:
        name: ``kind`` of an arm.
        summary: description in a few words.
        plan: (a task, the entry) -> what is played on it; nothing is trained yet.
        needs, may: the other fields of ArmEntry that it needs, and those that it reads where they are given.
    """

    name: str
    summary: str
    plan: Callable[[Setting, ArmEntry], list[Planned]]
    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where ``plan`` is defined."""
        return origin(self.plan)


_ARMS = "metasched.arena.arms"
_ROWS = (
    ArmSpec("float", "the float network, with the best of five learning rates", Lazy(f"{_ARMS}:reference")),
    ArmSpec("ste", "no schedule, fixed scales, likewise", Lazy(f"{_ARMS}:reference")),
    ArmSpec("lsq", "no schedule, learned scales, likewise", Lazy(f"{_ARMS}:reference")),
    ArmSpec("constants", "each hand-coded schedule that is constant up to its end", Lazy(f"{_ARMS}:constants")),
    ArmSpec("hand_coded", "each hand-coded schedule of the method", Lazy(f"{_ARMS}:hand_coded")),
    ArmSpec("schedule", "one schedule, by the name or path in `of`", Lazy(f"{_ARMS}:given"), ("of",)),
    ArmSpec("best_constant", "the constant that is best on validation", Lazy(f"{_ARMS}:best_constant")),
    ArmSpec("best_published", "the hand-coded schedule that is best there", Lazy(f"{_ARMS}:best_published")),
    ArmSpec("search", "the search `of`, with `runs` runs", Lazy(f"{_ARMS}:searches"), ("of", "runs")),
    ArmSpec(
        "surface",
        "what a response surface over the store `of` proposes, at no run",
        Lazy("metasched.arena.proposing:surface"),
        ("of",),
    ),
    ArmSpec("portfolio", "the best of the `first` few of a portfolio", Lazy(f"{_ARMS}:first"), ("first",), ("of",)),
)
ARMS: dict[str, ArmSpec] = {row.name: row for row in _ROWS}
