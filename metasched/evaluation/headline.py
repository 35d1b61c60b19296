"""The numbers of a comparison in one record: what was learned, no schedule, the float network, the best published."""

from __future__ import annotations

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
