"""What comes out of an arena: one page in Markdown and one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metasched.arena.per_task import TaskResult, plain
from metasched.arena.scores import Scores
from metasched.arena.tables import FLOOR, Row, Table, differences, tables
from metasched.evaluation.comparison import FLOORS
from metasched.evaluation.statistics import PairedDifference, summarize
from metasched.io.atomic import write_atomic
from metasched.io.json_text import json_text
from metasched.methods.spec import CEILING
from metasched.tracking.plots import plot_comparison

_COLUMNS = (
    "arm",
    "mean",
    "this - {against} [95 % over tasks]",
    "p (Holm)",
    "tasks",
    "above",
    "wins",
    "rank",
    "[95 % over searches]",
    "runs",
    "diverged",
    "broken",
)


def columns(table: Table) -> list[str]:
    """The heads of a table's columns."""
    return [column.format(against=table.against) for column in _COLUMNS]


def cells(row: Row) -> list[str]:
    """A row as text."""
    return [
        row.arm,
        f"{row.mean:.4f}",
        _interval(row.difference),
        "" if row.p is None else f"{row.p:.2g}",
        str(row.n),
        str(row.above),
        str(row.wins),
        "" if row.rank is None else f"{row.rank:.2f}",
        _interval(row.searches),
        f"{row.runs:.0f}",
        str(row.diverged),
        str(row.broken),
    ]


def page(scores: Scores, results: Sequence[TaskResult], found: Sequence[Table], picture: str | None) -> str:
    """The page: what was played, a table for each horizon and opponent, the figure, what was chosen, what broke."""
    parts = sorted({info.part for info in scores.tasks.values()})
    families = len({info.family for info in scores.tasks.values()})
    seeds = sorted({len(info.seeds) for info in scores.tasks.values()})
    text = [
        "# Arena",
        "",
        f"{len(scores.tasks)} tasks of {families} families, {_listed(seeds)} seeds each, scores on the "
        f"{' and '.join(parts)} part. The unit is the task: intervals are Student's t over tasks. `floor` is no "
        "schedule, with fixed or learned scales, whichever is better on the validation part of the task; at horizons "
        "above 1, where nothing is tuned, whichever has the better mean. `runs` is what an arm took of validation runs "
        "on a task. `wins`: tasks where no other arm, float aside, has a higher mean.",
    ]
    for table in found:
        head = columns(table)
        rows = [head, ["---"] * len(head), *map(cells, table.rows)]
        text += ["", f"## {table.horizon} x the steps of the task, against {table.against}", ""]
        text += ["| " + " | ".join(row) + " |" for row in rows]
    shown = f"![Differences to the floor on each task]({picture})"
    text += ["", shown if picture else "No floor was played, so there is no figure of differences to it.", ""]
    text += _curse(results)
    broken = [line for line in scores.lines if line.error is not None]
    if broken:
        text += ["## Broken", "", "These are left out of all tables.", ""]
        text += [f"- {line.task}, {line.arm}, horizon {line.horizon}: {line.error}" for line in broken]
    return "\n".join(text).rstrip() + "\n"


def _curse(results: Sequence[TaskResult]) -> list[str]:
    """The score that a choice was made by, beside the score of what was chosen from fresh seeds."""
    lines = []
    names = dict.fromkeys(name for result in results for name in result.arms)
    for name in names:
        own = [r.arms[name] for r in results if name in r.arms and r.horizon == min(x.horizon for x in results)]
        pairs = [(arm.validation, arm.mean) for arm in own if arm.validation is not None]
        if pairs:
            at, after = summarize([v for v, _ in pairs]).mean, summarize([m for _, m in pairs]).mean
            lines.append(f"| {name} | {at:.4f} | {after:.4f} | {len(pairs)} |")
    if not lines:
        return []
    return [
        "## Score at choice, and after",
        "",
        "What was tuned, chosen or searched on the validation part has there the score of the best of several, which "
        "flatters it (the winner's curse); the second column is the same from fresh seeds, on the part of the tables.",
        "",
        "| arm | at choice | fresh | tasks |",
        "| --- | --- | --- | --- |",
        *lines,
        "",
    ]


def write_report(folder: Path, scores: Scores, results: Sequence[TaskResult], against: Sequence[str]) -> list[Table]:
    """Writes ``tasks.json``, ``tables.json``, ``report.md`` and ``arena.png``, and gives the tables.

    Raises:
        MetaschedError: no arm of a name in ``against``, or a file cannot be written.
    """
    found = tables(results, against)
    write_atomic(folder / "tasks.json", _lines(plain(results)))
    write_atomic(folder / "tables.json", _lines([table.to_dict() for table in found]))
    picture = folder / "arena.png"
    drawn = _drawn(results)
    if drawn:
        plot_comparison(
            picture, drawn, axis=f"mean score on a task minus {FLOOR} (dots: tasks; mean, 95 % interval)", of="tasks"
        )
    write_atomic(folder / "report.md", page(scores, results, found, picture.name if drawn else None).encode())
    return found


def _drawn(results: Sequence[TaskResult]) -> dict[int, dict[str, list[float]]]:
    """{horizon: {arm: its difference to the floor on each task}}; without arms that have none."""
    drawn: dict[int, dict[str, list[float]]] = {}
    for horizon in sorted({result.horizon for result in results}):
        here = [result for result in results if result.horizon == horizon]
        names = dict.fromkeys(name for result in here for name in result.arms if name not in (*FLOORS, CEILING))
        found = {name: list(differences(here, name, FLOOR).values()) for name in names}
        if any(found.values()):
            drawn[horizon] = {name: values for name, values in found.items() if values}
    return drawn


def _lines(rows: Sequence[object]) -> bytes:
    return ("[\n" + ",\n".join(json_text(row) for row in rows) + "\n]\n").encode()


def _interval(d: PairedDifference | None) -> str:
    return "" if d is None else f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"


def _listed(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))
