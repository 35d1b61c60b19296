"""The scores of a comparison in 80 columns: the arms that matter. The rest is in the report."""

from __future__ import annotations

from io import StringIO
from textwrap import wrap

from metasched.evaluation.comparison import FLOORS, REFERENCES, Comparison
from metasched.evaluation.verdict import verdicts
from metasched.tracking.console import Console, open_console

_COLUMNS = 80
_TOP = 5  # further arms
_LEARNED = 3  # of the learned ones


def scores_text(comparison: Comparison) -> str:
    """The verdicts and the scores of all horizons as lines of at most 80 characters, but for rows of long names."""
    text = StringIO()
    console = open_console(text)
    for verdict in verdicts(comparison):
        console.note(str(verdict))
    for horizon in comparison.horizons:
        show_scores(comparison, horizon, console, "Score of the hard network")
    lines = text.getvalue().splitlines()
    wrapped = ([line] if line.startswith("  ") else wrap(line, _COLUMNS, subsequent_indent="    ") for line in lines)
    return "\n".join(part for parts in wrapped for part in parts)


def show_scores(comparison: Comparison, horizon: int, console: Console, score: str = "Hardened test score") -> None:
    """Shows the ceiling, the floors, the learned arms, the best five others and the worst, the best first.

    The last column is the paired difference to the first floor, which meta-validation named or whose mean is higher.
    """
    arms, floors = comparison.at(horizon), comparison.floors(horizon)
    best_first = sorted(arms.values(), key=lambda arm: -arm.summary.mean)
    others = [arm.name for arm in best_first if arm.name not in (*REFERENCES, *comparison.learned)]
    learned = [arm.name for arm in best_first if arm.name in comparison.learned]
    shown = {*REFERENCES, *learned[:_LEARNED], *others[:_TOP], best_first[-1].name}
    columns = ["schedule", "mean", *(f"this - {floor.name} [95 % interval]" for floor in floors[:1])]
    rows = []
    for arm in best_first:
        if arm.name in shown:
            row = [arm.name, f"{arm.summary.mean:.4f}"]
            for floor in floors[:1]:
                d = comparison.difference(arm, floor)
                row.append("" if arm is floor else f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]")
            rows.append(row)
    console.table(f"{score} after {horizon} steps, n = {len(comparison.seeds)}", columns, rows, comparison.learned)
    left_out = len(arms) - len(rows)
    diverged = {arm.name: arm.diverged for arm in arms.values() if arm.diverged}
    if left_out:
        console.note(f"{left_out} more arm{'s' * (left_out > 1)} in the report")
    if diverged:
        console.note(f"runs that diverged: {', '.join(f'{n} of {name}' for name, n in diverged.items())}")
    if len(floors) > 1 and floors[0].name in FLOORS:
        tuned = floors[0].tuned
        why = "were not tuned" if tuned is None else f"were tuned at {tuned.steps} steps"
        console.note(f"the floors' rates {why}, so {floors[0].name} is the better floor of these scores")
