"""The outcome of a comparison: scores of all arms on the same seeds, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metasched.evaluation.statistics import PairedDifference, Summary, counted, holm, paired_difference, summarize
from metasched.exchange.format import Spent


@dataclass(frozen=True)
class Arm:
    """One schedule at one horizon.

    Attributes:
        name: of the schedule.
        horizon: T, inner steps of each run.
        scores: final score of the hardened network on the test split, one a seed; NaN for a run that diverged.
        inner_steps: training steps that this arm spent: T for each seed.
        spent: training steps that finding the schedule took, before; empty for a hand-coded one.
    """

    name: str
    horizon: int
    scores: tuple[float, ...]
    inner_steps: int
    spent: tuple[Spent, ...] = ()

    @property
    def summary(self) -> Summary:
        """Mean, standard deviation, n, of the scores as they count."""
        return summarize(counted(self.scores))

    @property
    def diverged(self) -> int:
        """How many of the runs diverged."""
        return sum(math.isnan(score) for score in self.scores)


@dataclass(frozen=True)
class Comparison:
    """All arms at all horizons, on the same seeds in the same order.

    Attributes:
        seeds: the inner seeds.
        arms: of each horizon, in the order given.
        learned: names of the arms that others are compared against.
    """

    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    learned: tuple[str, ...]

    def at(self, horizon: int) -> dict[str, Arm]:
        """The arms of one horizon by name."""
        return {arm.name: arm for arm in self.arms if arm.horizon == horizon}

    @property
    def horizons(self) -> list[int]:
        """The horizons, in inner steps."""
        return sorted({arm.horizon for arm in self.arms})

    def difference(self, arm: Arm, other: Arm) -> PairedDifference:
        """Mean paired difference arm - other with its 95 % interval."""
        return paired_difference(counted(arm.scores), counted(other.scores))

    def corrected(self, arm: Arm) -> dict[str, float]:
        """P-value of the difference to each other arm of its horizon, corrected for their number (Holm)."""
        others = [other for other in self.at(arm.horizon).values() if other.name != arm.name]
        adjusted = holm([self.difference(arm, other).p for other in others])
        return {other.name: p for other, p in zip(others, adjusted, strict=True)}

    def rows(self, horizon: int, references: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
        """The table of a horizon, best mean first: columns and rows as text.

        Args:
            horizon: of the table.
            references: the arms that get a column of differences; default: ``learned``.
        """
        arms = self.at(horizon)
        learned = [arms[name] for name in (self.learned if references is None else references) if name in arms]
        diverged = any(arm.diverged for arm in arms.values())
        found = any(arm.spent for arm in arms.values())
        columns = [
            "schedule",
            "mean",
            "sd",
            "n",
            *["diverged"] * diverged,
            "inner steps",
            *["found in (inner steps)"] * found,
        ]
        for arm in learned:
            columns += [f"{arm.name} - this [95 % interval]", "p (Holm)"]
        corrected = {arm.name: self.corrected(arm) for arm in learned}
        rows = []
        for arm in sorted(arms.values(), key=lambda a: -a.summary.mean):
            s = arm.summary
            row = [arm.name, f"{s.mean:.4f}", f"{s.sd:.4f}", str(s.n)]
            row += [*[str(arm.diverged)] * diverged, str(arm.inner_steps)]
            row += [" + ".join(f"{spent.inner_steps} {spent.by}" for spent in arm.spent)] * found
            for reference in learned:
                if reference is arm:
                    row += ["", ""]
                else:
                    d, p = self.difference(reference, arm), corrected[reference.name][arm.name]
                    row += [f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]", f"{p:.2g}"]
            rows.append(row)
        return columns, rows

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        arms = []
        for arm in self.arms:
            entry: dict[str, Any] = {
                "name": arm.name,
                "horizon": arm.horizon,
                **arm.summary._asdict(),
                "diverged": arm.diverged,
                "inner_steps": arm.inner_steps,
                "spent": [asdict(spent) for spent in arm.spent],
                "scores": list(arm.scores),
            }
            references = [self.at(arm.horizon)[n] for n in self.learned if n in self.at(arm.horizon)]
            entry["differences"] = {
                r.name: {**self.difference(r, arm)._asdict(), "p_holm": self.corrected(r)[arm.name]}
                for r in references
                if r is not arm
            }
            arms.append(entry)
        return {"seeds": list(self.seeds), "learned": list(self.learned), "arms": arms}
