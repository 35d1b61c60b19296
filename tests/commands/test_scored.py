"""The test scores in a schedule file, against the numbers of its comparison and Student's t by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from metasched.commands.scored import scored, write_scores
from metasched.evaluation.comparison import Arm, Comparison
from metasched.exchange.format import ScheduleFile
from metasched.exchange.schedule_file import read_schedule, write_schedule

FILE = Path(__file__).parents[1] / "formats" / "schedule_v1_learned.json"
SEEDS = (1, 2, 3)
T_95 = 4.302652729911275  # quantile 0.975 of Student's t with 2 degrees of freedom (tables)
LEARNED = Arm("learned", 5, (0.7, 0.8, 0.9), 15)
STE = Arm("ste", 5, (0.7, 0.7, 0.7), 15)
LSQ = Arm("lsq", 5, (0.6, 0.9, 0.6), 15)
FLOAT = Arm("float", 5, (0.9, 0.9, 0.9), 15)


@pytest.fixture
def file() -> ScheduleFile:
    return read_schedule(FILE)


def of(*arms: Arm) -> Comparison:
    return Comparison(SEEDS, arms, ("learned",))


def test_score_floor_and_ceiling_with_the_intervals_of_their_differences(file: ScheduleFile) -> None:
    found = scored(file, of(LEARNED, STE, FLOAT), "learned")
    metric, reference = found.provenance.metric, found.reference
    assert metric is not None and reference is not None
    assert (metric.name, metric.value, metric.n) == ("hardened test score after 5 steps", pytest.approx(0.8), 3)
    floor, ceiling = reference.floor, reference.ceiling
    assert floor is not None and (floor.name, floor.score, floor.n) == ("ste", pytest.approx(0.7), 3)
    half = T_95 * 0.1 / math.sqrt(3)  # the differences are 0, 0.1, 0.2 and -0.2, -0.1, 0
    assert floor.interval == pytest.approx((0.1 - half, 0.1 + half))
    assert ceiling is not None and ceiling.interval == pytest.approx((-0.1 - half, -0.1 + half))
    assert found.version == 2 and replace(found, reference=None, provenance=file.provenance, version=3) == file


def test_the_floor_is_the_better_one(file: ScheduleFile) -> None:
    found = scored(file, of(LEARNED, STE, replace(LSQ, scores=(0.9, 0.9, 0.9))), "learned")
    assert found.reference is not None and found.reference.floor is not None
    assert found.reference.floor.name == "lsq" and found.reference.ceiling is None


def test_without_floor_and_ceiling_there_is_a_score_alone(file: ScheduleFile) -> None:
    found = scored(file, of(LEARNED), "learned")
    assert found.reference is None and found.version == file.version


def test_the_file_is_written_in_place(file: ScheduleFile, tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    write_schedule(path, file)
    comparison = of(LEARNED, STE)
    assert write_scores(path, comparison, "learned") == read_schedule(path) == scored(file, comparison, "learned")
