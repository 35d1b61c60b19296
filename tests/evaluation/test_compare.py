"""Comparisons: the same seeds for all arms, and paired numbers that follow from the scores by hand."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from scipy import stats

from metasched.config import CompareConfig, Experiment, MethodConfig, RunConfig, TaskConfig
from metasched.errors import MetaschedError
from metasched.evaluation.cells import cell_score, played
from metasched.evaluation.compare import baselines, compare, fresh_seeds, read_playable
from metasched.evaluation.comparison import Arm, Comparison
from metasched.exchange.baselines import baselines as exported
from metasched.exchange.export import write_schedule
from metasched.exchange.format import Spent
from metasched.randomness import derive_seed
from metasched.tracking import Memory
from metasched.training.pool import Pool
from metasched.training.problem import build_problem

EXPERIMENT = Experiment(
    task=TaskConfig(model="mlp", width=3, steps=4, batch=16, train=64, validation=16, test=32),
    method=MethodConfig(name="inq"),
    compare=CompareConfig(seeds=3, baselines=("inq_linear", "inq_cubic"), horizons=(1, 3)),
    run=RunConfig(workers=1),
)


class Silent:
    def outer(self, *_: object) -> None: ...
    def note(self, text: str) -> None: ...
    def table(self, *_: object) -> None: ...
    def close(self) -> None: ...


def test_every_arm_meets_the_same_seeds_at_every_horizon() -> None:
    schedules, memory = baselines(EXPERIMENT), Memory()
    with Pool(1) as pool:
        found = compare(EXPERIMENT, schedules, ["inq_linear"], pool, memory, Silent())
    assert found.seeds == tuple(fresh_seeds(EXPERIMENT)) == tuple(derive_seed(0, "compare", i) for i in range(3))
    assert [(a.name, a.horizon, a.inner_steps) for a in found.arms] == [
        ("inq_linear", 4, 12),
        ("inq_cubic", 4, 12),
        ("inq_linear", 12, 36),
        ("inq_cubic", 12, 36),
    ]
    for arm in found.arms:
        values = played(EXPERIMENT, schedules[arm.name], arm.horizon)
        assert arm.scores == tuple(cell_score(EXPERIMENT, values, s, arm.horizon, "test") for s in found.seeds)
        rows = [r for r in memory.rows if (r["compare/arm"], r["compare/horizon"]) == (arm.name, arm.horizon)]
        assert [r["compare/seed"] for r in rows] == list(found.seeds)


def test_paired_numbers_by_hand() -> None:
    learned, other = Arm("learned", 8, (0.5, 0.7, 0.9), 24), Arm("b", 8, (0.4, 0.5, 0.9), 24)
    comparison = Comparison((1, 2, 3), (other, learned), ("learned",))
    half = stats.t.ppf(0.975, 2) * math.sqrt(0.01) / math.sqrt(3)  # differences 0.1, 0.2, 0: mean 0.1, sd 0.1
    (entry,) = (e for e in comparison.to_dict()["arms"] if e["name"] == "b")
    difference = entry["differences"]["learned"]
    assert difference["mean"] == pytest.approx(0.1) and difference["n"] == 3
    assert (difference["low"], difference["high"]) == pytest.approx((0.1 - half, 0.1 + half))
    columns, rows = comparison.rows(8)
    assert columns[-2:] == ["learned - this [95 % interval]", "p (Holm)"]
    assert [row[0] for row in rows] == ["learned", "b"]
    assert rows[0][1:4] == ["0.7000", "0.2000", "3"]
    assert rows[1][-2] == f"+0.1000 [{0.1 - half:+.4f}, {0.1 + half:+.4f}]"
    assert rows[1][-1] == f"{2 * stats.t.sf(math.sqrt(3), 2):.2g}"  # of t = 0.1 / (0.1 / sqrt(3)); one arm: uncorrected


def test_what_finding_a_schedule_took_is_in_the_table(tmp_path: Path) -> None:
    problem = build_problem(EXPERIMENT)
    file = exported()["inq_linear"]
    spent = (Spent(by="tpe", inner_steps=600), Spent(by="es", inner_steps=1200))
    write_schedule(tmp_path / "tuned.json", replace(file, provenance=replace(file.provenance, spent=spent)))
    tuned = read_playable(tmp_path / "tuned.json", EXPERIMENT, problem.network)
    with Pool(1) as pool:
        found = compare(EXPERIMENT, {"tuned": tuned, **baselines(EXPERIMENT)}, ["tuned"], pool, Memory(), Silent())
    columns, rows = found.rows(4)
    column = columns.index("found in (inner steps)")
    assert {row[0]: row[column] for row in rows} == {
        "tuned": "600 tpe + 1200 es",
        "inq_linear": "",
        "inq_cubic": "",
    }
    assert [arm["spent"] for arm in found.to_dict()["arms"][:2]] == [[asdict(entry) for entry in spent], []]


def test_unknown_baselines_are_named() -> None:
    wrong = Experiment(method=MethodConfig(name="inq"), compare=CompareConfig(baselines=("inq_linear", "inq_cubik")))
    with pytest.raises(MetaschedError, match=r"compare\.baselines\[1\]: .*did you mean 'inq_cubic'"):
        baselines(wrong)
