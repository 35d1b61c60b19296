"""Learning rates of floors and ceiling are tuned on meta-validation alone, with a budget of inner runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched.config.load import experiment_of
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.evaluation.compare import compare, plan_of
from metasched.evaluation.comparison import Comparison, comparison_of
from metasched.evaluation.config import CompareConfig
from metasched.evaluation.contenders import Contender, fresh_seeds, hand_coded_arms, joined
from metasched.evaluation.floors import with_tuned_rates
from metasched.evaluation.references import reference_arms, with_optimizer
from metasched.exchange.baselines import baselines as exported
from metasched.exchange.format import Spent
from metasched.exchange.played import PlayedSchedule
from metasched.methods.config import MethodConfig
from metasched.runs.cells import cell_score, cell_scores
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.tasks.base import Part, Task
from metasched.tasks.config import TaskConfig
from metasched.tasks.live import register_live
from metasched.tracking.tracker import Memory
from metasched.training.optimizers.config import OptimizerConfig

EXPERIMENT = Experiment(
    task=TaskConfig(model="mlp", width=3, steps=4, batch=16, train=64, validation=16, test=32),
    optimizer=OptimizerConfig(lr=0.02),
    method=MethodConfig(name="inq"),
    compare=CompareConfig(seeds=2, baselines=(), tune_floors=10),
    run=RunConfig(workers=1),
)
NAMES = ("ste", "lsq", "float")


class Notes(list[str]):
    def progress(self, *_: object) -> None: ...
    def outer(self, *_: object) -> None: ...
    def note(self, text: str) -> None:
        self.append(text)

    def table(self, *_: object) -> None: ...
    def close(self) -> None: ...


class Moved(Task):
    """A task whose scores are how far the last bias has moved: little is best on validation, much on test."""

    name = "moved"

    def __init__(self, model: Callable[[], nn.Module], optimizer: OptimizerConfig | None = None) -> None:
        self.model, self.optimizer = model, optimizer

    def build(self) -> nn.Module:
        return self.model()

    def batch(self, seed: int, step: int) -> Any:
        draws = torch.Generator().manual_seed(derive_seed(seed, "batch", step))
        return torch.rand(8, 2, generator=draws, dtype=torch.float64)

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        return F.mse_loss(model(batch), batch.sum(1, keepdim=True) + 50)

    def outer_batch(self) -> Any:
        return self.batch(-1, 0)

    def score(self, model: Any, part: Part) -> float:
        with torch.no_grad():
            moved = float(model(torch.zeros(1, 2, dtype=torch.float64)).abs())
        return -moved if part == "validation" else moved


def moved(optimizer: OptimizerConfig | None = None, model: Callable[[], nn.Module] | None = None) -> Experiment:
    make = model or (lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)))
    document = {
        "task": {"factory": register_live(Moved(make, optimizer)), "steps": 5},
        "method": {"name": "inq"},
        "compare": {"seeds": 2, "baselines": [], "tune_floors": 10},
        "run": {"workers": 1, "dtype": "float64"},
    }
    return experiment_of(document)


class Answers:
    """A pool that gives scores by learning rate, and keeps what it was asked."""

    workers = 1

    def __init__(self, by_rate: Mapping[float, float]) -> None:
        self.by_rate, self.asked = by_rate, list[tuple[Any, ...]]()

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        assert function is cell_scores
        for config, _, seeds, steps, part in arguments:
            self.asked.append((config.optimizer.lr, config.method, tuple(seeds), steps, part))
            yield [self.by_rate[round(config.optimizer.lr, 9)]] * len(seeds)


def tuned(by_rate: Mapping[float, float], experiment: Experiment = EXPERIMENT) -> tuple[dict[str, Contender], Answers]:
    pool = Answers(by_rate)
    return with_tuned_rates(experiment, joined(*reference_arms(experiment.problem)), pool, Memory(), Notes()), pool


def test_the_best_of_five_rates_wins_and_what_was_tried_is_kept() -> None:
    arms, pool = tuned({0.005: 0.1, 0.01: 0.2, 0.02: 0.3, 0.04: 0.5, 0.08: 0.4})
    for name in NAMES:
        rate = arms[name].tuned
        assert arms[name].problem.optimizer == OptimizerConfig(lr=0.04) and rate is not None
        assert rate.tried == ((0.005, 0.1), (0.01, 0.2), (0.02, 0.3), (0.04, 0.5), (0.08, 0.4))
        assert (rate.lr, rate.score, rate.runs, rate.at_the_end) == (0.04, 0.5, 2, False)
        assert rate.inner_steps == 5 * 2 * 4  # rates, runs, steps
    seeds = tuple(derive_seed(EXPERIMENT.seed, "tune floors", i) for i in range(2))
    assert not {*seeds} & {*fresh_seeds(EXPERIMENT.seed, 100)}
    assert {(steps, part) for _, _, _, steps, part in pool.asked} == {(4, "validation")}
    runs = [(lr, method.name, method.scale, seed) for lr, method, own, _, _ in pool.asked for seed in own]
    assert len(runs) == len({*runs}) == 3 * 5 * 2 and {seed for *_, seed in runs} == {*seeds}


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ((0.5, 0.5, 0.5, 0.5, 0.5), 0.02),
        ((0.5, 0.5, 0.1, 0.5, 0.5), 0.01),
        ((0.5, 0.1, 0.1, 0.5, 0.5), 0.04),
        ((0.5, 0.1, 0.1, 0.1, 0.5), 0.005),
        ((0.1, 0.1, 0.1, 0.1, 0.5), 0.08),
        ((float("nan"), 0.1, 0.1, 0.1, 0.1), 0.02),  # a run that diverged counts as the worst
        ((float("nan"),) * 5, 0.02),
    ],
)
def test_of_equal_scores_the_nearest_rate_wins(scores: tuple[float, ...], chosen: float) -> None:
    arms, _ = tuned(dict(zip((0.005, 0.01, 0.02, 0.04, 0.08), scores, strict=True)))
    assert {arm.problem.optimizer.lr for arm in arms.values()} == {chosen}


@pytest.mark.parametrize(("runs", "of_each"), [(5, 1), (7, 1), (8, 2), (100, 20)])
def test_the_budget_is_shared_by_the_rates(runs: int, of_each: int) -> None:
    asked = replace(EXPERIMENT, compare=CompareConfig(tune_floors=runs))
    arms, _ = tuned(dict.fromkeys((0.005, 0.01, 0.02, 0.04, 0.08), 0.5), asked)
    assert {arm.tuned and arm.tuned.runs for arm in arms.values()} == {of_each}


def test_without_a_budget_nothing_is_run_and_the_rate_is_the_experiments() -> None:
    arms, pool = tuned({}, replace(EXPERIMENT, compare=CompareConfig()))
    assert pool.asked == [] and arms == joined(*reference_arms(EXPERIMENT.problem))


def learned(*spent: int) -> PlayedSchedule:
    file = exported()["inq_linear"]
    own = tuple(Spent(by="es", inner_steps=steps) for steps in spent)
    return PlayedSchedule(replace(file, provenance=replace(file.provenance, spent=own)))


def test_as_many_runs_as_learning_took() -> None:
    asked = replace(EXPERIMENT, compare=CompareConfig(tune_floors="as_learned"))
    more = {name: ("x" + name, Contender(asked.problem, learned(*s))) for name, s in (("a", (40, 20)), ("b", (8,)))}
    pool = Answers(dict.fromkeys((0.005, 0.01, 0.02, 0.04, 0.08), 0.5))
    arms = joined(*more.values(), *reference_arms(asked.problem))
    found = with_tuned_rates(asked, arms, pool, Memory(), Notes())
    assert found["ste"].tuned is not None and found["ste"].tuned.runs == 3  # 60 steps are 15 runs of 4
    assert found["xa"] == arms["xa"] and [*found] == [*arms]
    with pytest.raises(MetaschedError, match=r"compare\.tune_floors: as_learned has no number to go by: .*; give a"):
        with_tuned_rates(asked, joined(*reference_arms(asked.problem)), pool, Memory(), Notes())


@pytest.mark.parametrize("runs", [1, 4])
def test_a_run_for_each_rate_is_the_least(runs: int) -> None:
    with pytest.raises(MetaschedError) as error:
        experiment_of({"compare": {"tune_floors": runs}})
    assert str(error.value) == (
        f"compare.tune_floors: {runs} inner runs are too few for 5 learning rates; give 0, 5 or more"
    )


@pytest.mark.parametrize(
    ("section", "value", "line"),
    [
        ("compare", {"tune_floors": "as_lerned"}, 'compare.tune_floors: must be a valid integer, got "as_lerned"; did'),
        ("compare", {"tune_floors": -1}, "compare.tune_floors: must be at least 0, got -1; give int|as_learned"),
        (
            "method",
            {"activation_scale": "learnt"},
            'method.activation_scale: must be a valid number, got "learnt"; did',
        ),
    ],
)
def test_a_wrong_number_or_word_is_one_line(section: str, value: dict[str, Any], line: str) -> None:
    with pytest.raises(MetaschedError) as error:
        experiment_of({section: value})
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_validation_chooses_where_test_would_choose_otherwise() -> None:
    """By all ten runs of each arm, one by one; on this task the test split prefers the highest rate."""
    experiment, memory, notes = moved(), Memory(), Notes()
    with Pool(1) as pool:
        arms = with_tuned_rates(experiment, joined(*reference_arms(experiment.problem)), pool, memory, notes)
        found = compare(plan_of(experiment), arms, [], pool, memory, notes)
    seeds = [derive_seed(experiment.seed, "tune floors", i) for i in range(2)]
    rates = [0.0025, 0.005, 0.01, 0.02, 0.04]
    for name, arm in reference_arms(experiment.problem):
        configs = {lr: with_optimizer(arm.problem, OptimizerConfig(lr=lr)) for lr in rates}

        def mean(lr: float, part: Part, configs: Mapping[float, Any] = configs) -> float:
            return sum(cell_score(configs[lr], {}, seed, 5, part) for seed in seeds) / 2

        of_validation, of_test = (
            max(rates, key=lambda lr, part=part: mean(lr, part)) for part in ("validation", "test")
        )
        rate = arms[name].tuned
        assert rate is not None and of_validation != of_test
        assert rate.lr == pytest.approx(of_validation, rel=1e-12)
        assert [score for _, score in rate.tried] == pytest.approx([mean(lr, "validation") for lr in rates], rel=1e-12)
        played = found.at(5)[name]
        assert played.scores == tuple(
            cell_score(configs[of_validation], {}, seed, 5, "test") for seed in fresh_seeds(experiment.seed, 2)
        )
        assert played.spent == (Spent(by="lr", inner_steps=50),) and played.tuned == rate
        logged = [row for row in memory.rows if row.get("floors/name") == name]
        assert [(row["floors/lr"], row["floors/score"]) for row in logged] == [*rate.tried]
        assert any(note.startswith(f"{name}: learning rate {rate.lr:.3g}") for note in notes)
    columns, rows = found.rows(5)
    assert [row[columns.index("found in (inner steps)")] for row in rows] == ["50 lr"] * 3
    assert {row[0]: row[columns.index("tuned lr")] for row in rows} == {n: f"{arms[n].tuned.lr:.3g}" for n in NAMES}
    assert comparison_of(found.to_dict()) == found


def test_the_rates_are_those_of_the_tasks_own_optimizer() -> None:
    own = OptimizerConfig(name="sgd", lr=1e-3, momentum=0.5)
    arms, _ = _tuned_for_real(moved(own))
    rate, chosen = arms["ste"].tuned, arms["ste"].problem.optimizer
    assert rate is not None and [lr for lr, _ in rate.tried] == [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3]
    assert replace(own, lr=rate.lr) == (own if rate.lr == 1e-3 else chosen)


def _tuned_for_real(experiment: Experiment) -> tuple[dict[str, Contender], Notes]:
    notes = Notes()
    with Pool(1) as pool:
        found = with_tuned_rates(experiment, joined(*reference_arms(experiment.problem)), pool, Memory(), notes)
    return found, notes


def test_hand_coded_schedules_keep_the_rate_of_the_experiment() -> None:
    experiment = replace(EXPERIMENT, compare=replace(EXPERIMENT.compare, baselines=("inq_linear",)))
    arms = joined(*reference_arms(experiment.problem), *hand_coded_arms(experiment.problem, ["inq_linear"]))
    pool = Answers({0.005: 0.9, 0.01: 0.2, 0.02: 0.3, 0.04: 0.5, 0.08: 0.4})
    found = with_tuned_rates(experiment, arms, pool, Memory(), Notes())
    assert found["inq_linear"] == arms["inq_linear"]
    assert found["float"].tuned is not None and found["float"].tuned.at_the_end


def test_old_results_without_lsq_are_read() -> None:
    old = {
        "seeds": [1, 2],
        "learned": ["learned"],
        "arms": [
            {"name": name, "horizon": 5, "scores": [0.5, score], "inner_steps": 10}
            for name, score in (("learned", 0.7), ("ste", 0.6))
        ],
    }
    found = comparison_of(old)
    assert isinstance(found, Comparison) and [arm.name for arm in found.floors(5)] == ["ste"]
    assert [c for c in found.rows(5)[0] if c.startswith("this")] == ["this - ste [95 % interval]"]
