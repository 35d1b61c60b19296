"""The verdict of a comparison in one line: the best arm, and its advantage over training without a schedule.

There are two floors, with fixed and with learned scales, and a ceiling (see references.py); all train for the same
steps, from the same seeds. If the learning rates of the floors were tuned at this horizon, meta-validation has named
the better floor, and every arm is held against that one. Otherwise, and at the longer horizons, every arm is held
against both: the line shows the difference to the one with the higher mean, and p is

- the larger of the two p-values if the arm's mean is above both floors: "above" needs both (intersection-union test);
- twice the p-value against the better floor otherwise, since either may be that (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from metasched.evaluation.comparison import FLOORS, Arm, Comparison
from metasched.evaluation.statistics import PairedDifference, holm
from metasched.methods.spec import CEILING

_ALPHA = 0.05


class Verdict(NamedTuple):
    """One arm at one horizon against the floors and the ceiling.

    Attributes:
        horizon: T, inner steps.
        arm: name of the arm.
        best: whether its mean is the highest of all quantized arms.
        mean, ceiling: mean scores of the arm and of the ceiling; ceiling is None if it was not played.
        floors: mean scores of the floors that the arm is held against, the better one first.
        named: whether meta-validation has named the floor, so that there is one of two.
        difference: paired difference arm minus the first floor; None for a floor.
        p: p-value (see the module), corrected for the number of quantized arms (Holm); None for a floor.
        arms: number of quantized arms without the floors.
    """

    horizon: int
    arm: str
    best: bool
    mean: float
    floors: dict[str, float]
    named: bool
    ceiling: float | None
    difference: PairedDifference | None
    p: float | None
    arms: int

    @property
    def floor(self) -> float:
        """The mean score of the first floor."""
        return next(iter(self.floors.values()))

    @property
    def closed(self) -> float | None:
        """Share of the gap between the first floor and the ceiling that an arm closes; None if no gap or no gain."""
        if self.difference is None or self.ceiling is None:
            return None
        if self.ceiling <= self.floor or self.mean <= self.floor:
            return None
        return (self.mean - self.floor) / (self.ceiling - self.floor)

    @property
    def finding(self) -> str:
        """``above`` all floors, or ``below`` the first one, if the corrected p is below 0.05; else ``level``."""
        if self.difference is None or self.p is None or self.p >= _ALPHA:
            return "level"
        return "above" if self.difference.mean > 0 else "below"

    def __str__(self) -> str:
        end = "" if self.ceiling is None else f"; {CEILING} {self.ceiling:.4f}"
        if self.difference is None:
            return (
                f"verdict after {self.horizon} steps: no schedule ({self.arm}) is best, {self.mean:.4f}: none of "
                f"{self.arms} schedules has a higher mean{end}"
            )
        d = self.difference
        who = f"{self.arm} is best of {self.arms}" if self.best else self.arm
        floors = ", ".join(f"{name} {mean:.4f}" for name, mean in self.floors.items())
        floors += ", chosen on validation" if self.named else ""
        several = len(self.floors) > 1
        text = (
            f"verdict after {self.horizon} steps: {who}, {self.mean:.4f}: {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] "
            f"against no schedule ({floors}), n = {d.n}, p = {self.p:.2g}: {self.finding}"
        )
        if several:
            text += {"above": " both", "below": f" {next(iter(self.floors))}", "level": ""}[self.finding]
        if self.finding == "level" and not d.low <= 0 <= d.high:
            text += f" (after correction for {self.arms} arms{' and both floors' * several})"
        if self.closed is not None:
            end = f"; closes {100 * self.closed:.0f} % of the gap to {CEILING} ({self.ceiling:.4f})"
        return text + end

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for JSON."""
        own = self._asdict() | {"difference": self.difference and self.difference._asdict(), "floor": self.floor}
        return {**own, "closed": self.closed, "finding": self.finding, "text": str(self)}


def verdicts(comparison: Comparison) -> list[Verdict]:
    """For each horizon with a floor: the verdict of the best quantized arm, then those of the other learned arms."""
    return [verdict for horizon in comparison.horizons for verdict in _at(comparison, horizon)]


def _at(comparison: Comparison, horizon: int) -> Iterator[Verdict]:
    arms, floors = comparison.at(horizon), comparison.floors(horizon)
    if not floors:
        return
    ceiling = arms.get(CEILING)
    quantized = [arm for arm in arms.values() if arm.name not in (*FLOORS, CEILING)]
    against = {arm.name: [comparison.difference(arm, floor) for floor in floors] for arm in quantized}
    corrected = dict(zip(against, holm([_p_value(own) for own in against.values()]), strict=True))
    played = [arms[name] for name in FLOORS if name in arms]
    best = max([*played, *quantized], key=lambda arm: arm.summary.mean)  # at ties a floor

    def of(arm: Arm) -> Verdict:
        means = {floor.name: floor.summary.mean for floor in floors}
        top = None if ceiling is None else ceiling.summary.mean
        first = against[arm.name][0] if arm.name in against else None
        found = corrected.get(arm.name)
        named = len(floors) < len(played)
        return Verdict(
            horizon, arm.name, arm is best, arm.summary.mean, means, named, top, first, found, len(quantized)
        )

    yield of(best)
    for name in comparison.learned:
        if name in arms and name not in (best.name, *FLOORS, CEILING):
            yield of(arms[name])


def _p_value(differences: list[PairedDifference]) -> float:
    """The p-value of an arm against all floors, of which the first is the best; see the module."""
    first = differences[0]
    return max(d.p for d in differences) if first.mean > 0 else min(1.0, len(differences) * first.p)
