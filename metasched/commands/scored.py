"""The test scores in the schedule file of a run: its own, that of no schedule and that of the float network."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from metasched.evaluation.comparison import Arm, Comparison
from metasched.exchange.extras import Measured, Reference
from metasched.exchange.format import VERSIONS, Metric, ScheduleFile
from metasched.exchange.schedule_file import read_schedule, write_schedule
from metasched.methods.spec import CEILING


def scored(file: ScheduleFile, comparison: Comparison, name: str) -> ScheduleFile:
    """The file with the test score of its arm at the first horizon, and the floor and ceiling that were played there.

    The floor is the first one of the verdict (evaluation/verdict.py). Intervals of floor and ceiling are those of the
    paired difference, this schedule minus them. Means that are not finite are left out.
    """
    horizon = comparison.horizons[0]
    arms = comparison.at(horizon)
    own = arms[name]
    if not math.isfinite(own.summary.mean):
        return file
    metric = Metric(name=f"hardened test score after {horizon} steps", value=own.summary.mean, n=own.summary.n)

    def measured(other: Arm | None) -> Measured | None:
        if other is None or not math.isfinite(other.summary.mean):
            return None
        d = comparison.difference(own, other)
        return Measured(name=other.name, score=other.summary.mean, n=d.n, interval=(d.low, d.high))

    floor, ceiling = next(iter(comparison.floors(horizon)), None), arms.get(CEILING)
    reference = Reference(floor=measured(floor), ceiling=measured(ceiling))
    kept = reference if reference.floor or reference.ceiling else None
    provenance = replace(file.provenance, metric=metric)
    newest = VERSIONS[-1]  # of which the file takes the lowest that has its fields
    return replace(file, provenance=provenance, reference=kept, version=newest)


def write_scores(path: Path, comparison: Comparison, name: str) -> ScheduleFile:
    """Writes the test scores of the arm ``name`` into the schedule file at ``path``; returns what it holds now.

    They take the place of the score on meta-validation by which it was found.
    """
    file = scored(read_schedule(path), comparison, name)
    write_schedule(path, file)
    return file
