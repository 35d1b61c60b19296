"""Comparisons: the same seeds for all arms, and paired numbers that follow from the scores by hand."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import functional_call

from metasched.config.load import load_experiment
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.evaluation.compare import compare, plan_of
from metasched.evaluation.comparison import Arm, Comparison
from metasched.evaluation.config import CompareConfig
from metasched.evaluation.contenders import Contender, described_arm, file_arm, fresh_seeds, hand_coded_arms, joined
from metasched.evaluation.references import reference_arms
from metasched.exchange.baselines import baselines as exported
from metasched.exchange.format import Spent
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import write_schedule
from metasched.methods.config import MethodConfig
from metasched.runs.cells import cell_score, played
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.tasks.config import TaskConfig
from metasched.tracking.tracker import Memory
from metasched.training.problem import build_problem

ROOT = Path(__file__).parents[2]
EXPERIMENT = Experiment(
    task=TaskConfig(model="mlp", width=3, steps=4, batch=16, train=64, validation=16, test=32),
    method=MethodConfig(name="inq"),
    compare=CompareConfig(seeds=3, baselines=("inq_linear", "inq_cubic"), horizons=(1, 3)),
    run=RunConfig(workers=1),
)


class Silent:
    def progress(self, *_: object) -> None: ...
    def outer(self, *_: object) -> None: ...
    def note(self, text: str) -> None: ...
    def table(self, *_: object) -> None: ...
    def close(self) -> None: ...


def test_every_arm_meets_the_same_seeds_at_every_horizon() -> None:
    arms, memory = joined(*hand_coded_arms(EXPERIMENT.problem, EXPERIMENT.compare.baselines)), Memory()
    with Pool(1) as pool:
        found = compare(plan_of(EXPERIMENT), arms, ["inq_linear"], pool, memory, Silent())
    seeds = fresh_seeds(EXPERIMENT.seed, EXPERIMENT.compare.seeds)
    assert found.seeds == tuple(seeds) == tuple(derive_seed(0, "compare", i) for i in range(3))
    assert [(a.name, a.horizon, a.inner_steps) for a in found.arms] == [
        ("inq_linear", 4, 12),
        ("inq_cubic", 4, 12),
        ("inq_linear", 12, 36),
        ("inq_cubic", 12, 36),
    ]
    for arm in found.arms:
        values = played(EXPERIMENT.problem, arms[arm.name].schedule, arm.horizon)
        assert arm.scores == tuple(cell_score(EXPERIMENT.problem, values, s, arm.horizon, "test") for s in found.seeds)
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
    file = exported()["inq_linear"]
    spent = (Spent(by="tpe", inner_steps=600), Spent(by="es", inner_steps=1200))
    write_schedule(tmp_path / "tuned.json", replace(file, provenance=replace(file.provenance, spent=spent)))
    tuned = file_arm(EXPERIMENT.problem, tmp_path / "tuned.json")
    arms = joined(("tuned", tuned), *hand_coded_arms(EXPERIMENT.problem, EXPERIMENT.compare.baselines))
    with Pool(1) as pool:
        found = compare(plan_of(EXPERIMENT), arms, ["tuned"], pool, Memory(), Silent())
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
        hand_coded_arms(wrong.problem, wrong.compare.baselines)


def test_floor_and_ceiling_are_the_same_network_steps_optimizer_and_seeds() -> None:
    """By independent loops: plain torch for the float network, hard weights by hand for STE."""
    experiment = replace(
        EXPERIMENT,
        method=MethodConfig(name="inq", activation_levels=None, scale="max"),
        compare=CompareConfig(seeds=2, baselines=()),
        run=RunConfig(workers=1, dtype="float64"),
    )
    arms = joined(*reference_arms(experiment.problem))
    assert [(name, c.problem.method.name, c.problem.method.scale) for name, c in arms.items()] == [
        ("ste", "ste", "max"),
        ("lsq", "ste", "learned"),
        ("float", "float", "unit"),
    ]
    with Pool(1) as pool:
        found = compare(plan_of(experiment), arms, [], pool, Memory(), Silent()).at(4)
    assert found["float"].scores == tuple(
        _plain_score(experiment, s, hard=False) for s in fresh_seeds(experiment.seed, experiment.compare.seeds)
    )
    assert found["ste"].scores == tuple(
        _plain_score(experiment, s, hard=True) for s in fresh_seeds(experiment.seed, experiment.compare.seeds)
    )


def _plain_score(experiment: Experiment, seed: int, *, hard: bool) -> float:
    """Test score after plain training: torch's modules, loss and Adam; ternary weights by clip and round if hard."""
    task = build_problem(experiment.problem).task
    torch.manual_seed(derive_seed(seed, "weights"))
    model = task.build().double()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)][:-1] if hard else []
    scales = [m.weight.detach().abs().max() for m in linear]

    def outputs(x: torch.Tensor) -> torch.Tensor:
        seen = {}
        names = {m: name for name, m in model.named_modules()}
        for m, scale in zip(linear, scales, strict=True):
            soft = (m.weight / scale).clamp(-1, 1)
            seen[f"{names[m]}.weight"] = (soft + (soft.round() - soft).detach()) * scale
        return functional_call(model, seen, (x,))

    optimizer = torch.optim.Adam(model.parameters(), lr=experiment.optimizer.lr)
    for step in range(experiment.task.steps):
        x, y = task.batch(seed, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(outputs(x), y).backward()
        optimizer.step()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.reset_running_stats()
            m.momentum = None
    with torch.no_grad():
        outputs(task.train.x)
        model.eval()
        return float((outputs(task.test.x).argmax(1) == task.test.y).double().mean())


def test_arms_may_be_of_any_method(tmp_path: Path) -> None:
    name, arm = described_arm(
        EXPERIMENT, ["mine", "metropolis_geometric", "method.cooling=adaptive", "optimizer.lr=0.5"]
    )
    own = arm.problem
    assert (name, own.method.name, own.method.cooling, own.optimizer.lr) == ("mine", "metropolis", "adaptive", 0.5)
    assert own.task == EXPERIMENT.task and arm.schedule.name == "metropolis_geometric"
    write_schedule(tmp_path / "cold.json", exported()["metropolis_cold"])
    assert file_arm(EXPERIMENT.problem, tmp_path / "cold.json").problem.method == MethodConfig(name="metropolis")
    named = replace(EXPERIMENT, compare=CompareConfig(baselines=("inq_linear", "gxnor_cosine")))
    assert [(n, c.problem.method.name) for n, c in hand_coded_arms(named.problem, named.compare.baselines)] == [
        ("inq_linear", "inq"),
        ("gxnor_cosine", "gxnor"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lonely"], "--arm: is 'lonely'; give NAME SCHEDULE"),
        (["x", "inq_linear", "task.steps=5"], "--arm x: has other data, steps or seeds"),
        (["x", "inq_linear", "seed=5"], "--arm x: has other data, steps or seeds"),
        (["x", "inq_linear", "method.name=ste"], "--arm x: 'inq_linear' is neither a hand-coded schedule of ste"),
        (["x", "inq_lineer"], "--arm x: 'inq_lineer' is neither a hand-coded schedule of inq nor a file"),
        (["x", "inq_linear", "optimizer.lr"], "--arm x: 'optimizer.lr' has no value"),
        (["x", "inq_linear", "optimizer.lr=-1"], "--arm x: optimizer.lr: must be greater than 0"),
        (["x", "ste", "method.name=inq"], "--arm x: 'ste' is neither a hand-coded schedule of inq"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(MetaschedError) as error:
        described_arm(EXPERIMENT, words)
    assert message in str(error.value)


def test_fields_of_an_arm_decide_what_plays_a_file() -> None:
    """The file is of joint, and so is the experiment, but of other methods: without the field it does not fit."""
    main = load_experiment(ROOT / "experiments" / "digits.yaml", ["--method.of=widths+rates"])
    path = str(ROOT / "experiments" / "learned" / "digits_b.json")
    with pytest.raises(MetaschedError, match="lacks lr_scale"):
        described_arm(main, ["b", path])
    _, arm = described_arm(main, ["b", path, "method.of=widths+blend"])
    assert (arm.problem.method.name, arm.problem.method.of) == ("joint", "widths+blend")


def test_two_arms_of_a_name_are_refused() -> None:
    other = Contender(EXPERIMENT.problem, PlayedSchedule(exported()["inq_linear"]))
    with pytest.raises(MetaschedError, match="ste: is the name of two arms"):
        joined(("ste", other), *reference_arms(EXPERIMENT.problem))


def test_the_main_job_plays_hand_coded_schedules_of_every_kind_beside_the_floors() -> None:
    experiment = load_experiment(ROOT / "experiments" / "digits.yaml")
    arms = hand_coded_arms(experiment.problem, experiment.compare.baselines)
    methods = {arm.problem.method.name for _, arm in arms}
    assert methods == {"widths", "rates", "ana", "inq", "temperature", "parq", "blend"}
    assert experiment.compare.tune_floors == "as_learned" and experiment.schedule.start == "floor"


def test_hand_coded_schedules_of_several_methods_are_played_together_by_joint() -> None:
    """Each alone is an arm of its method; joined, the values of both are played, whatever the method is."""
    for method in ("ana", "joint"):
        problem = Experiment(method=MethodConfig(name=method)).problem
        ((name, arm),) = hand_coded_arms(problem, ["widths_wide_first+rates_rising"])
        assert name == "widths_wide_first+rates_rising"
        assert arm.problem.method == MethodConfig(name="joint", of="widths+rates")
        found = played(arm.problem, arm.schedule, 5)
        for part in name.split("+"):
            ((_, alone),) = hand_coded_arms(problem, [part])
            assert all(torch.equal(found[c], v) for c, v in played(alone.problem, alone.schedule, 5).items())


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("widths_wide_first+nope", "unknown name 'nope'"),
        ("widths_wide_first+widths_narrowing", "'widths' is named twice"),
        ("widths_wide_first+ana_linear", "both say what the forward pass sees"),
        ("widths_wide_first+inq_dvs128", "has a step function"),
    ],
)
def test_schedules_that_do_not_go_together_are_refused(name: str, match: str) -> None:
    with pytest.raises(MetaschedError, match=match):
        hand_coded_arms(Experiment().problem, [name])
