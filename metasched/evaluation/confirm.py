"""Confirmation: is what was learned better than what it started at?

    d_i = score of what was learned - score of its start        on seed i, i = 1 ... n

Both are played as they are exported: hard, from the same fresh seeds, scored on meta-validation. There is a gain if
the 95 % interval of the mean of d (Student's t) lies above 0; if all scores are equal, there is none. A run that
diverged counts as the worst score, as in a comparison.

The seeds have a stream of their own, so neither learning, which these scores would flatter, nor the choice of the start
has seen them. The test split is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from metasched.config.schema import ProblemConfig
from metasched.core.randomness import derive_seed
from metasched.evaluation.statistics import PairedDifference, Summary, counted, lowest, paired_difference, summarize
from metasched.runs.cells import cell_scores, played, shares
from metasched.runs.pool import Mapper
from metasched.schedules.base import Schedule
from metasched.schedules.table import NO_SCHEDULE
from metasched.tracking.console import Console, watched
from metasched.tracking.tracker import Tracker
from metasched.training.problem import build_problem

_ARMS = ("learned", "start")


class Confirmation(NamedTuple):
    """What was learned against its start.

    Attributes:
        start: name of the start.
        score: of the start, over the n runs.
        difference: learned minus start, paired by seed.
        inner_steps: training steps of all runs.
        unit: what the n pairs are.
    """

    start: str
    score: Summary
    difference: PairedDifference
    inner_steps: int
    unit: str = "fresh meta-validation seeds"

    @property
    def gain(self) -> bool:
        """Whether what was learned is better by its interval, and not by a rounding error that all runs share."""
        return self.difference.low > 0 and self.difference.p < 1

    def __str__(self) -> str:
        d = self.difference
        # the floor as this experiment has it: its learning rate is not tuned, as it may be in the comparison
        over = "the floor at this learning rate" if self.start == NO_SCHEDULE else f"the start ({self.start})"
        found, kept = ("gain", "what was learned") if self.gain else ("no gain", "the start")
        return (
            f"{found} over {over}: {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] on {d.n} {self.unit}; "
            f"schedule.json is {kept}"
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for JSON."""
        return {
            "start": self.start,
            "score": self.score._asdict(),
            "difference": self.difference._asdict(),
            "inner_steps": self.inner_steps,
            "gain": self.gain,
            "text": str(self),
        }


def steps_to_confirm(runs: int, steps: int) -> int:
    """Training steps that ``confirm`` takes with so many runs of so many steps."""
    return len(_ARMS) * runs * steps


def confirm(
    config: ProblemConfig,
    learned: Schedule,
    start: tuple[str, Schedule],
    runs: int,
    seed: int,
    pool: Mapper,
    tracker: Tracker,
    console: Console,
) -> Confirmation:
    """Plays what was learned and its start, and logs the scores and their difference.

    Args:
        config: the problem on which it was learned.
        learned: what was learned.
        start: name and schedule.
        runs: inner runs of each, at least 2.
        seed: of the experiment.
        pool: does the inner runs.
        tracker: receives the scores.
        console: shows the progress.
    """
    steps = config.task.steps
    seeds = [derive_seed(seed, "confirm", run) for run in range(runs)]
    work = [
        (config, controls, part, steps, "validation")
        for schedule in (learned, start[1])
        for controls in [played(config, schedule, steps)]
        for part in shares(config, seeds, pool)
    ]
    parts = watched(console, "runs to confirm", pool.map(cell_scores, work), len(_ARMS) * runs)
    found = [score for part in parts for score in part]
    for i, score in enumerate(found):
        tracker.log({"confirm/arm": _ARMS[i // runs], "confirm/seed": seeds[i % runs], "confirm/score": score})
    worst = build_problem(config).task.worst_score
    scores = counted(found, lowest(found) if worst is None else worst)
    before = scores[runs:]
    confirmation = Confirmation(
        start[0], summarize(before), paired_difference(scores[:runs], before), steps_to_confirm(runs, steps)
    )
    tracker.log(summary(confirmation))
    return confirmation


def summary(confirmation: Confirmation) -> Mapping[str, float | bool]:
    """What is logged of a confirmation."""
    d = confirmation.difference
    return {
        "confirm/difference": d.mean,
        "confirm/low": d.low,
        "confirm/high": d.high,
        "confirm/runs": d.n,
        "confirm/gain": confirmation.gain,
        "confirm/inner_steps": confirmation.inner_steps,
    }
