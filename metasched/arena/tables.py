"""The third level of an arena: what an arm gives on a task that nobody has seen, with tasks as the unit.

The difference of two arms on a task is that of their means over seeds. Over tasks it has Student's t interval; n is the
number of tasks on which both were played. P-values are corrected for the number of arms (Holm). For an arm of several
searches there is a second interval, over searches: how much another search on the same tasks may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from metasched.arena.per_task import ArmOnTask, TaskResult
from metasched.core.errors import unknown_name
from metasched.evaluation.comparison import FLOORS
from metasched.evaluation.statistics import PairedDifference, holm, paired_difference, summarize
from metasched.methods.spec import CEILING

FLOOR = "floor"  # the better one of no schedule, named on meta-validation of each task


@dataclass(frozen=True)
class Row:
    """An arm at a horizon, over tasks.

    Attributes:
        arm: its name.
        n: tasks on which it and the opponent were played.
        mean: its mean score over its tasks.
        difference: it minus the opponent over tasks; None for the opponent itself, and with fewer than two tasks.
        p: the p-value of that, corrected for the number of arms (Holm); None for floors and ceiling.
        searches: the same difference over searches, of which each is a mean over tasks; None where there are not two.
        rank: its mean rank on its tasks, among all arms but the ceiling; 1 is best.
        wins: tasks on which no arm but the ceiling has a higher mean.
        above: tasks on which it is above the opponent.
        runs: inner runs on meta-validation that it took on a task, in the mean over tasks.
        diverged: runs that diverged.
        broken: tasks on which it broke; they are left out.
    """

    arm: str
    n: int
    mean: float
    difference: PairedDifference | None
    p: float | None
    searches: PairedDifference | None
    rank: float | None
    wins: int
    above: int
    runs: float
    diverged: int
    broken: int


@dataclass(frozen=True)
class Table:
    """All arms against one, at one horizon."""

    horizon: int
    against: str
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for JSON."""
        return asdict(self) | {"rows": [_plain(row) for row in self.rows]}


def tables(results: Sequence[TaskResult], against: Sequence[str] = (FLOOR,)) -> list[Table]:
    """A table for each horizon and opponent, the best arm by its mean difference first.

    Args:
        results: of the tasks.
        against: names of arms, or ``floor``.

    Raises:
        MetaschedError: no arm of that name.
    """
    names = {name for result in results for name in result.arms}
    for other in against:
        if other not in (FLOOR, *names):
            raise unknown_name("--against", other, {FLOOR, *names})
    horizons = sorted({result.horizon for result in results})
    return [_table([r for r in results if r.horizon == h], h, other) for h in horizons for other in against]


def _table(results: Sequence[TaskResult], horizon: int, against: str) -> Table:
    names = list(dict.fromkeys(name for result in results for name in result.arms))
    ranks = [_ranks(result) for result in results]
    rows = [_row(name, results, ranks, against) for name in names]
    tested = [row for row in rows if row.difference is not None and row.arm not in (CEILING, *FLOORS)]
    corrected = dict(zip([r.arm for r in tested], holm([r.difference.p for r in tested if r.difference]), strict=True))
    rows = [replace(row, p=corrected.get(row.arm)) for row in rows]
    paired = any(row.difference for row in rows)
    rows.sort(key=lambda row: -(row.difference.mean if row.difference else 0.0 if paired else row.mean))
    return Table(horizon, against, tuple(rows))


def opponent(result: TaskResult, against: str) -> ArmOnTask | None:
    """The arm of a task that the others are held against; None where it was not played."""
    name = result.floor if against == FLOOR else against
    return None if name is None else result.arms.get(name)


def differences(results: Sequence[TaskResult], arm: str, against: str) -> dict[str, float]:
    """{task: the mean of an arm minus that of the opponent}, of the tasks that have both."""
    pairs = {r.task: (r.arms.get(arm), opponent(r, against)) for r in results}
    return {task: a.mean - b.mean for task, (a, b) in pairs.items() if a is not None and b is not None}


def _row(name: str, results: Sequence[TaskResult], ranks: Sequence[Mapping[str, float]], against: str) -> Row:
    own = [result for result in results if name in result.arms]
    arms = [result.arms[name] for result in own]
    other = [opponent(result, against) for result in own]
    both = [(a, b) for a, b in zip(arms, other, strict=True) if b is not None]
    same = all(a is b for a, b in both)
    a, b = [x.mean for x, _ in both], [y.mean for _, y in both]
    mine = [rank[name] for rank in ranks if name in rank]
    return Row(
        name,
        len(both),
        summarize([arm.mean for arm in arms]).mean,
        None if same or len(both) < 2 else paired_difference(a, b),
        None,
        None if same else _over_searches(both),
        summarize(mine).mean if mine else None,
        sum(rank.get(name) == min(rank.values()) for rank in ranks if rank),
        sum(x > y for x, y in zip(a, b, strict=True)),
        summarize(
            [arm.spent * result.horizon / max(1, result.steps) for arm, result in zip(arms, own, strict=True)]
        ).mean,
        sum(arm.diverged for arm in arms),
        sum(name in result.broken for result in results),
    )


def _over_searches(both: Sequence[tuple[ArmOnTask, ArmOnTask]]) -> PairedDifference | None:
    """The difference of each search, which is a mean over the tasks, with its interval over searches."""
    number = min((len(a.searches) for a, _ in both), default=0)
    if number < 2:
        return None
    each = [summarize([a.searches[i] for a, _ in both]).mean for i in range(number)]
    return paired_difference(each, [summarize([b.mean for _, b in both]).mean] * number)


def _ranks(result: TaskResult) -> dict[str, float]:
    """The rank of each arm but the ceiling on a task, 1 for the highest mean; equal ones share the mean of theirs."""
    means = {name: arm.mean for name, arm in result.arms.items() if name != CEILING}
    return {
        name: 1 + sum(m > mean for m in means.values()) + (sum(m == mean for m in means.values()) - 1) / 2
        for name, mean in means.items()
    }


def _plain(row: Row) -> dict[str, Any]:
    pairs = {name: getattr(row, name) for name in ("difference", "searches")}
    return asdict(row) | {name: None if d is None else d._asdict() for name, d in pairs.items()}
