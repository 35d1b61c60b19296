"""One outer step over several tasks, on tasks whose best numbers are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from metasched.config.load import experiment_of
from metasched.config.schema import Experiment, ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.engines.base import ControlGradient
from metasched.estimators.table import ESTIMATORS
from metasched.families.drawing import drawn_tasks
from metasched.families.family import TaskFamily
from metasched.meta.config import MetaConfig
from metasched.meta.many import build_many, check_controls, features_for, scaled
from metasched.meta.outer import OuterState, meta_train
from metasched.runs.local import Judged, Run
from metasched.schedules.base import progress_of_steps
from metasched.schedules.learnable import build_learnable
from metasched.schedules.shared import SharedSchedule
from metasched.schedules.table import hand_coded
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem

SIZES = {"task.model": "mlp", "task.width": 2, "task.train": 16, "task.validation": 8, "task.test": 8, "task.batch": 4}
SHORT = {"name": "short", "weight": 3.0, "set": {**SIZES, "task.steps": 6}}
MIDDLE = {"name": "middle", "set": {**SIZES, "task.steps": 25}}
LONG = {"name": "long", "set": {**SIZES, "task.steps": 80}}
METHOD = {"name": "widths", "activation_levels": None}


def experiment(*entries: Any, **tasks: Any) -> Experiment:
    section = {"per_step": 3, "normalize": "none", **tasks, "entries": list(entries)}
    return experiment_of({"name": "many", "method": METHOD, "tasks": section})


def shared(of: Experiment, knots: int = 2) -> SharedSchedule:
    """The level of one control, as one number a task: its correction on a log scale."""
    problem = build_problem(TaskFamily(of).each()[0].problem)
    settings = replace(of.schedule, knots=knots, directions=1)
    base = hand_coded("widths")["widths_constant_100"]
    network = problem.network
    made = build_learnable(settings, network.method.controls, base, ["weight_width"], network.layers, 0)
    return SharedSchedule(made)


def level(schedule: Any, config: ProblemConfig) -> torch.Tensor:
    """Log of the width in the middle of the run, 0-d."""
    problem = build_problem(config)
    return schedule(progress_of_steps(problem.steps), problem.network.layers)["weight_width"][0, 0].log()


def best(config: ProblemConfig) -> float:
    """The log width at which a task's loss is least: linear in the bounded feature of its horizon."""
    return 0.1 + 0.3 * math.tanh((math.log10(config.task.steps) - 2.0) / 0.5)


@dataclass
class Planted:
    """Runs of tasks with loss factor (log width - best)^2, whatever the seed; asked for of any problem."""

    config: ProblemConfig
    meta: MetaConfig
    factor: float = 1.0
    large: float = 100.0  # factor of the task of 80 steps
    label = "planted"

    @property
    def problem(self) -> InnerProblem:
        return build_problem(self.config)

    def of(self, config: ProblemConfig) -> Planted:
        return Planted(config, self.meta, self.large if config.task.steps == 80 else 1.0)

    def loss(self, controls: Any) -> torch.Tensor:
        return self.factor * (controls["weight_width"][0, 0].log() - best(self.config)) ** 2

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        return [Judged(float(self.loss(run.controls)), 0.5) for run in runs]

    def gradients(self, runs: Sequence[Run]) -> list[ControlGradient]:
        found = []
        for run in runs:
            controls = {name: v.clone().requires_grad_() for name, v in run.controls.items()}
            loss = self.loss(controls)
            got = torch.autograd.grad(loss, list(controls.values()), allow_unused=True)
            wrt = {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(controls.items(), got, strict=True)}
            found.append(ControlGradient(float(loss.detach()), 0.5, wrt, 0, 0.0, 0.0))
        return found

    def slopes(self, runs: Any) -> Any:
        raise AssertionError("not asked for")

    def segments(self, segments: Any) -> Any:
        raise AssertionError("not asked for")


def planted(of: Experiment, **meta: Any) -> Planted:
    settings = MetaConfig(**{"estimator": "sweep", "runs": 2, "clip": 1e9, "steps": 1, **meta})
    return Planted(TaskFamily(of).each()[0].problem, settings)


def test_the_gradient_is_the_weighted_sum_of_finite_differences_of_the_losses() -> None:
    of = experiment(SHORT, MIDDLE, LONG)
    family, learned, runs = TaskFamily(of), shared(of), planted(of)
    q = (0.5, 0.2, 0.3)
    with torch.no_grad():
        learned.weights.add_(0.1 * torch.randn(learned.weights.shape, generator=torch.Generator().manual_seed(1)))
    estimate = build_many(runs.meta, family, q).estimate(learned, runs, [5, 6], {})
    assert estimate.weights is not None
    drawn = drawn_tasks(family, 5, 3, q)
    assert list(estimate.weights) == [w.weight for w in drawn] and len({w.task.name for w in drawn}) > 1
    found = sum(w * e.gradient[0] for w, e in zip(estimate.weights, estimate.found, strict=True)) / 3

    def loss() -> float:
        return float(sum(w * runs.of(t.problem).loss(played(t)) for t, w in drawn)) / 3

    def played(task: Any) -> Any:
        problem = build_problem(task.problem)
        return learned.at(task.features)(progress_of_steps(problem.steps), problem.network.layers)

    eps, wanted = 1e-6, torch.zeros_like(learned.weights)
    for place in torch.ones_like(learned.weights).nonzero().tolist():
        i, j = place
        with torch.no_grad():
            learned.weights[i, j] += eps
            up = loss()
            learned.weights[i, j] -= 2 * eps
            down = loss()
            learned.weights[i, j] += eps
        wanted[i, j] = (up - down) / (2 * eps)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("estimator", "normalize"), [("sweep", "none"), ("es", "group")])
def test_what_is_best_for_each_task_is_learned_where_it_is_linear_in_a_feature(estimator: str, normalize: str) -> None:
    entry = {"name": "any", "set": SIZES, "draw": {"task.steps": [6, 25, 80]}}
    of = experiment(entry, normalize=normalize)
    family, learned = TaskFamily(of), shared(of)
    runs = planted(of, estimator=estimator, steps=90, lr=0.2, runs=4, **({"sigma": 0.2} if estimator == "es" else {}))
    runs.large = 1.0 if normalize == "none" else 100.0
    meta_train(runs, 3, learned, lambda record: None, estimator=build_many(runs.meta, family, None))
    for steps in (6, 25, 80, 200):  # the last one was never drawn
        (task,) = TaskFamily(experiment({"name": "one", "set": {**SIZES, "task.steps": steps}})).each()
        found = float(level(learned.at(task.features), task.problem).detach())
        assert found == pytest.approx(best(task.problem), abs=0.08), steps


def test_without_features_all_tasks_share_one_number() -> None:
    of = experiment(SHORT, LONG, features=False)
    runs, learned = planted(of, steps=4), shared(of)
    before = learned.weights.detach().clone()
    meta_train(runs, 3, learned, lambda record: None, estimator=build_many(runs.meta, TaskFamily(of), None))
    assert torch.equal(learned.weights[1:], before[1:]) and not torch.equal(learned.weights[0], before[0])
    assert features_for(TaskFamily(of).each()[0], False) == {}


@pytest.mark.parametrize("estimator", ["sweep", "es"])
@pytest.mark.parametrize("normalize", ["group", "sign", "none"])
def test_only_without_normalization_a_task_with_large_losses_counts_more(normalize: str, estimator: str) -> None:
    of = experiment({**SHORT, "weight": 1.0}, LONG, normalize=normalize, per_step=2)
    runs = planted(of, estimator=estimator)
    estimate = build_many(runs.meta, TaskFamily(of), None).estimate(shared(of), runs, [1, 2], {})
    small, large = (e.gradient[0].norm() for e in estimate.found)
    assert (large > 20 * small) == (normalize == "none")


def test_gradients_that_are_not_finite_are_left_out_of_the_scale() -> None:
    of = experiment(SHORT)
    runs = planted(of)
    one = build_many(runs.meta, TaskFamily(of), None).estimate(shared(of), runs, [1], {}).found[0]
    long = replace(one, gradient=[3 * g / one.gradient[0].norm() for g in one.gradient])
    short = replace(one, gradient=[4 * g / one.gradient[0].norm() for g in one.gradient])
    bad = replace(one, gradient=[g * math.nan for g in one.gradient])
    sizes = [float(e.gradient[0].norm()) for e in scaled([long, bad, short], "group")]
    assert sizes[::2] == pytest.approx([3 / math.sqrt(12.5), 4 / math.sqrt(12.5)]) and math.isnan(sizes[1])
    assert [float(e.gradient[0].norm()) for e in scaled([long, short], "sign")] == pytest.approx([1.0, 1.0])
    assert scaled([long, bad], "none") == [long, bad]


class Broken(Planted):
    """The long task diverges in every run."""

    def of(self, config: ProblemConfig) -> Planted:
        return Broken(config, self.meta)

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        long = self.config.task.steps == 80
        return [Judged(math.nan, 0.0) if long else judged for judged in super().judged(runs)]


def test_a_task_that_diverged_is_left_out_of_the_step() -> None:
    of = experiment(SHORT, LONG, per_step=2)
    runs = planted(of, estimator="es")
    runs = Broken(runs.config, runs.meta)
    learned, records = shared(of), []
    before = learned.weights.detach().clone()
    meta_train(runs, 3, learned, records.append, estimator=build_many(runs.meta, TaskFamily(of), (0.5, 0.5)))
    (record,) = records
    assert record.skipped == 1 and math.isfinite(record.loss) and not torch.equal(before, learned.weights)
    assert math.isnan(record.notes["loss/long"]) and math.isfinite(record.notes["loss/short"])
    assert "long (80 steps)" in (record.line or "") and record.inner_steps == 2 * 2 * (6 + 80)


def test_a_stopped_run_goes_on_with_the_same_bits() -> None:
    of = experiment(SHORT, MIDDLE, LONG)
    runs = planted(of, estimator="guided", steps=4, sigma=0.2, clip=1.0)
    states: list[OuterState] = []
    whole, again = shared(of), shared(of)
    many = build_many(runs.meta, TaskFamily(of), None)
    meta_train(runs, 3, whole, lambda record: None, save=states.append, estimator=many)
    assert states[2].estimator["guides"].any()
    meta_train(runs, 3, again, lambda record: None, since=states[2], estimator=many)
    assert torch.equal(whole.weights, again.weights)
    many.check(whole, runs, 2, states[2].estimator)
    with pytest.raises(MetaschedError, match="guides"):
        many.check(whole, runs, 2, {})


@pytest.mark.parametrize("name", [name for name, row in ESTIMATORS.items() if not row.many])
def test_an_estimator_that_carries_on_what_is_of_one_task_is_refused(name: str) -> None:
    with pytest.raises(MetaschedError, match=f"meta.estimator: {name} carries on"):
        build_many(MetaConfig(estimator=name), TaskFamily(experiment(SHORT)), None)


def test_tasks_of_other_controls_are_refused() -> None:
    of = experiment(SHORT, {"name": "other", "set": {"method.name": "inq"}})
    own, other = TaskFamily(of).each()
    controls = build_problem(own.problem).network.method.controls
    check_controls(own, controls)
    with pytest.raises(MetaschedError, match=r"tasks\.other: its method has other controls.*freeze_fraction"):
        check_controls(other, controls)
