"""Arms on several tasks, with tasks as the unit.

    d_t = mean over the seeds of task t of (score of a - score of b),    interval: that of the mean of d_t (Student's t)

All arms of a task are played from the same seeds. What seeds alone would say is how sure one may be of these tasks; the
interval over tasks is about tasks that nobody has drawn yet. A run that diverged counts as the worst score of its task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from metasched.core.randomness import derive_seed
from metasched.evaluation.contenders import Contender
from metasched.evaluation.statistics import PairedDifference, counted, lowest, paired_difference
from metasched.families.family import DrawnTask
from metasched.runs.cells import cell_scores, played, shares
from metasched.runs.pool import Mapper
from metasched.tasks.base import Part
from metasched.training.problem import build_problem


class PlayedTask(NamedTuple):
    """The scores of all arms on one task.

    Attributes:
        task: what was played.
        seeds: of the inner runs, the same for each arm.
        scores: {arm: one score a seed}, as they count; those of all tasks have the same arms.
        diverged: runs without a score of their own.
    """

    task: DrawnTask
    seeds: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]
    diverged: int

    def mean(self, arm: str) -> float:
        """The mean score of an arm."""
        return fmean(self.scores[arm])

    def to_dict(self) -> dict[str, Any]:
        """All about it as plain values, for JSON."""
        return {
            "name": self.task.name,
            "steps": self.task.experiment.task.steps,
            "features": self.task.features,
            "seeds": list(self.seeds),
            "scores": {arm: list(own) for arm, own in self.scores.items()},
            "diverged": self.diverged,
        }


def play_tasks(
    tasks: Sequence[DrawnTask],
    arms_of: Callable[[DrawnTask], Mapping[str, Contender]],
    runs: int,
    stream: tuple[int, str],
    part: Part,
    pool: Mapper,
    done: Callable[[PlayedTask], None],
) -> list[PlayedTask]:
    """Trains every arm of every task.

    Args:
        tasks: what is played.
        arms_of: the arms of a task, of the same names for each.
        runs: seeds of each task.
        stream: seed and name of the stream that the seeds of all tasks come from.
        part: on which it is scored.
        pool: does the inner runs.
        done: called after each task.
    """
    seed, name = stream
    found = []
    for t, task in enumerate(tasks):
        seeds = tuple(derive_seed(seed, name, t, run) for run in range(runs))
        arms, steps = arms_of(task), task.experiment.task.steps
        work = [
            (arm.problem, controls, of_process, steps, part)
            for arm in arms.values()
            for controls in [played(arm.problem, arm.schedule, steps)]
            for of_process in shares(arm.problem, seeds, pool)
        ]
        scores = [score for share in pool.map(cell_scores, work) for score in share]
        own = build_problem(task.problem).task.worst_score
        as_counted = counted(scores, lowest(scores) if own is None else own)
        each = {arm: as_counted[i * runs : (i + 1) * runs] for i, arm in enumerate(arms)}
        found.append(PlayedTask(task, seeds, each, sum(score != score for score in scores)))
        done(found[-1])
    return found


def over_tasks(played_tasks: Sequence[PlayedTask], a: str, b: str) -> PairedDifference:
    """Arm a minus arm b, averaged within each task, with the interval over tasks."""
    return paired_difference([t.mean(a) for t in played_tasks], [t.mean(b) for t in played_tasks])


def rows(played_tasks: Sequence[PlayedTask], arm: str) -> tuple[list[str], list[list[str | float]]]:
    """Columns and rows of a table: one arm against all others; the best mean first."""
    names = sorted(played_tasks[0].scores, key=lambda name: -fmean(t.mean(name) for t in played_tasks))
    table: list[list[str | float]] = []
    for name in names:
        row: list[str | float] = [name, f"{fmean(t.mean(name) for t in played_tasks):.4f}"]
        if name == arm:
            row += ["", ""]
        else:
            d = over_tasks(played_tasks, arm, name)
            wins = sum(t.mean(arm) > t.mean(name) for t in played_tasks)
            row += [f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]", f"{wins} of {d.n}"]
        table.append(row)
    return ["arm", "mean score", f"{arm} minus arm [95 % over tasks]", f"tasks with {arm} above"], table
