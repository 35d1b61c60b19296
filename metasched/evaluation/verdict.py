"""The verdict of a comparison in one line: the best arm, and its advantage over training without a schedule.

The floor is the straight-through estimator (STE): the same quantizers, hard from the first step, without a schedule.
The ceiling is the float network. Both train for the same steps, from the same seeds, with the same optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from metasched.evaluation.comparison import Arm, Comparison
from metasched.evaluation.statistics import PairedDifference, holm
from metasched.methods.spec import CEILING, FLOOR

_ALPHA = 0.05


class Verdict(NamedTuple):
    """One arm at one horizon against the floor and the ceiling.

    Attributes:
        horizon: T, inner steps.
        arm: name of the arm.
        best: whether its mean is the highest of all quantized arms.
        mean, floor, ceiling: mean scores of the arm, the floor and the ceiling; ceiling is None if it was not played.
        difference: paired difference arm minus floor; None for the floor itself.
        p: p-value of the difference, corrected for the number of quantized arms (Holm); None for the floor itself.
        arms: number of quantized arms without the floor.
    """

    horizon: int
    arm: str
    best: bool
    mean: float
    floor: float
    ceiling: float | None
    difference: PairedDifference | None
    p: float | None
    arms: int

    @property
    def closed(self) -> float | None:
        """Share of the gap between floor and ceiling that is closed; None if there is no gap or no gain."""
        if self.ceiling is None or self.ceiling <= self.floor or self.mean <= self.floor:
            return None
        return (self.mean - self.floor) / (self.ceiling - self.floor)

    @property
    def finding(self) -> str:
        """``above`` or ``below`` the floor if the corrected p is below 0.05, else ``level``."""
        if self.difference is None or self.p is None or self.p >= _ALPHA:
            return "level"
        return "above" if self.difference.mean > 0 else "below"

    def __str__(self) -> str:
        end = "" if self.ceiling is None else f"; {CEILING} {self.ceiling:.4f}"
        if self.difference is None:
            return (
                f"verdict after {self.horizon} steps: no schedule ({FLOOR}) is best, {self.mean:.4f}: none of "
                f"{self.arms} schedules has a higher mean{end}"
            )
        d = self.difference
        who = f"{self.arm} is best of {self.arms}" if self.best else self.arm
        text = (
            f"verdict after {self.horizon} steps: {who}, {self.mean:.4f}: {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] "
            f"against no schedule ({FLOOR} {self.floor:.4f}), n = {d.n}, p = {self.p:.2g}: {self.finding}"
        )
        if self.finding == "level" and not d.low <= 0 <= d.high:
            text += f" (after correction for {self.arms} arms)"
        if self.closed is not None:
            end = f"; closes {100 * self.closed:.0f} % of the gap to {CEILING} ({self.ceiling:.4f})"
        return text + end

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for JSON."""
        own = self._asdict() | {"difference": self.difference and self.difference._asdict()}
        return {**own, "closed": self.closed, "finding": self.finding, "text": str(self)}


def verdicts(comparison: Comparison) -> list[Verdict]:
    """For each horizon with a floor: the verdict of the best quantized arm, then those of the other learned arms."""
    return [verdict for horizon in comparison.horizons for verdict in _at(comparison, horizon)]


def _at(comparison: Comparison, horizon: int) -> Iterator[Verdict]:
    arms = comparison.at(horizon)
    if FLOOR not in arms:
        return
    floor, ceiling = arms[FLOOR], arms.get(CEILING)
    quantized = [arm for arm in arms.values() if arm.name not in (FLOOR, CEILING)]
    differences = {arm.name: comparison.difference(arm, floor) for arm in quantized}
    corrected = dict(zip(differences, holm([d.p for d in differences.values()]), strict=True))
    best = max([floor, *quantized], key=lambda arm: arm.summary.mean)  # at ties the floor

    def of(arm: Arm) -> Verdict:
        name, mean = arm.name, arm.summary.mean
        top = None if ceiling is None else ceiling.summary.mean
        difference, p = differences.get(name), corrected.get(name)
        return Verdict(horizon, name, arm is best, mean, floor.summary.mean, top, difference, p, len(quantized))

    yield of(best)
    for name in comparison.learned:
        if name in arms and name not in (best.name, FLOOR, CEILING):
            yield of(arms[name])
