"""The numbers of a comparison in one record: what was learned, no schedule, the float network, the best published."""

from __future__ import annotations

import math

from metasched.evaluation.comparison import FLOORS, REFERENCES, Arm, Comparison
from metasched.evaluation.measured import method_of_named
from metasched.evaluation.verdict import Verdict, verdicts
from metasched.methods.spec import CEILING


def best_published(comparison: Comparison, horizon: int) -> Arm | None:
    """The hand-coded schedule, or joint of several, with the highest mean test score; None where none was played.

    It is chosen on the scores that it is shown with, so its own mean flatters it.
    """
    names = method_of_named()
    arms = [
        arm
        for arm in comparison.at(horizon).values()
        if arm.name not in (*REFERENCES, *comparison.learned) and all(part in names for part in arm.name.split("+"))
    ]
    return max(arms, key=lambda arm: arm.summary.mean, default=None)


def of_learned(comparison: Comparison, horizon: int) -> Verdict | None:
    """The verdict of the first learned arm at a horizon; None where there is no such arm or no floor."""
    found = {v.arm: v for v in verdicts(comparison) if v.horizon == horizon}
    return next((found[name] for name in comparison.learned if name in found), None)


def numeric_table(comparison: Comparison, horizon: int) -> tuple[list[str], list[list[float | int | str]]]:
    """The scores of a horizon as names of columns and rows of numbers, the best arm first; NaN for what is not known.

    Differences are those to the first floor, and of the first learned arm, paired by seed, with 95 % intervals.
    """
    arms, floors = comparison.at(horizon), comparison.floors(horizon)
    floor = floors[0] if floors else None
    learned = next((arms[name] for name in comparison.learned if name in arms), None)
    corrected = {} if learned is None else comparison.corrected(learned)
    columns = ["schedule", "method", "mean", "sd", "n", "diverged", "bytes", "inner steps", "found in", "tuned lr"]
    columns += ["minus floor", "low", "high", "learned minus this", "low of that", "high of that", "p (Holm)"]

    def difference(first: Arm | None, other: Arm | None) -> list[float]:
        if first is None or other is None or first is other:
            return [math.nan] * 3
        return list(comparison.difference(first, other)[:3])

    rows: list[list[float | int | str]] = []
    for arm in sorted(arms.values(), key=lambda a: -a.summary.mean):
        s, size = arm.summary, math.nan if arm.size is None else float(arm.size)
        row: list[float | int | str] = [arm.name, arm.method, s.mean, s.sd, s.n, arm.diverged, size, arm.inner_steps]
        row += [sum(spent.inner_steps for spent in arm.spent), arm.tuned.lr if arm.tuned else math.nan]
        rows.append([*row, *difference(arm, floor), *difference(learned, arm), corrected.get(arm.name, math.nan)])
    return columns, rows


def headline(comparison: Comparison) -> dict[str, float]:
    """Mean scores and the difference to no schedule at the first horizon; what was not played is left out.

    Returns:
        some of ``learned``, ``floor`` (the better one, or that which meta-validation named), ``ceiling``,
        ``best_published``, and of the difference learned - floor ``difference``, ``low``, ``high`` (95 %), ``p``
        (corrected for the arms), ``n``.
    """
    horizon = comparison.horizons[0]
    arms, floors = comparison.at(horizon), comparison.floors(horizon)
    published, verdict = best_published(comparison, horizon), of_learned(comparison, horizon)
    shown = {
        "learned": next((arms[name] for name in comparison.learned if name in arms and name not in FLOORS), None),
        "floor": floors[0] if floors else None,
        "ceiling": arms.get(CEILING),
        "best_published": published,
    }
    found = {name: arm.summary.mean for name, arm in shown.items() if arm is not None}
    if verdict is not None and verdict.difference is not None and verdict.p is not None:
        d = verdict.difference
        found |= {"difference": d.mean, "low": d.low, "high": d.high, "p": verdict.p, "n": d.n}
    return found
