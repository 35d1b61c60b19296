"""Evolution strategies: their pairs, their scales, losses that are not finite, and all of them in the outer loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from learning import runs_of
from torch import nn
from torch.func import functional_call

from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.engines import find_unroll
from metasched.engines.base import Controls, OuterLoss
from metasched.engines.finite_differences import outer_loss
from metasched.estimators import ESTIMATORS, build_estimator
from metasched.estimators.es import EvolutionStrategies, bad_losses, finite_pairs
from metasched.estimators.perturbation import controls_at, direction, scales, score_function
from metasched.estimators.smoothed import smoothed_gradient
from metasched.meta.config import MetaConfig
from metasched.meta.outer import OuterStep, check_estimator, meta_train
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.runs.config import RunConfig
from metasched.runs.local import Judged, Reached, Run, Segment
from metasched.runs.pool import Pool
from metasched.runs.pooled import PooledRuns, local_runs
from metasched.schedules.base import progress_of_steps
from metasched.schedules.network import ScheduleNetwork, _features
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.tracking.metrics import unknown_metrics
from metasched.training.problem import build_problem

POPULATION = ("es", "pes", "nres")


def tiny(estimator: str = "es", objective: str = "hardened", **meta: Any) -> Experiment:
    return Experiment(
        task=TaskConfig(model="mlp", width=4, train=32, validation=16, batch=8, steps=5),
        method=MethodConfig(name="joint"),
        meta=MetaConfig(**{"estimator": estimator, "objective": objective, "runs": 2, "steps": 3, "window": 2, **meta}),
        run=RunConfig(dtype="float64"),
    )


def schedule_network(hidden: int = 8) -> ScheduleNetwork:
    controls = build_method(MethodConfig(name="joint")).controls
    learn = ["weight_noise", "activation_noise", "freeze_fraction"]
    return ScheduleNetwork(controls, hand_coded("joint")["joint_linear"], learn, knots=6, hidden=hidden, seed=0)


class Two(nn.Module):
    """One control, which is its two parameters at progress 0 and 1; their scales differ."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([0.3]))
        self.last = nn.Parameter(torch.tensor([-0.2]))

    def scales(self) -> dict[str, float]:
        return {"first": 0.5}  # and 1 for the other

    def forward(self, progress: torch.Tensor, layers: Sequence[Any]) -> dict[str, torch.Tensor]:
        return {"level": (self.first + (self.last - self.first) * progress)[:, None]}


class Answers:
    """In place of inner runs: a function of the controls and the seed; keeps what it was asked for."""

    problem = replace(build_problem(tiny().problem), steps=2)

    def __init__(self, loss: Callable[[Controls, int], float]) -> None:
        self.loss = loss
        self.asked: list[Run] = []

    def gradients(self, runs: Sequence[Run]) -> Any:
        raise AssertionError("evolution strategies need no derivative")

    def segments(self, segments: Sequence[Segment]) -> Any:
        raise AssertionError("full ES plays whole runs")

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        self.asked += runs
        return [Judged(self.loss(*run), float(len(self.asked))) for run in runs]


def flat(found: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in found])


def step_loss(controls: Controls, seed: int = 0) -> float:
    """Hard: no derivative anywhere."""
    first, last = controls["level"][:, 0].tolist()
    return 2 * float(first > 0.1) + 2 * float(last < 0.4) - 0.5 * float(first + last > 0)


# --- one estimate ---


def test_the_same_gradient_as_the_reference_on_a_hard_loss():
    """Both are unbiased: their means over independent pairs agree within 3 standard errors of the difference."""
    schedule, sigma, pairs = Two(), 0.4, 1500
    estimator = EvolutionStrategies(sigma)
    ours = torch.stack(
        [flat(estimator.estimate(schedule, Answers(step_loss), [seed], {}).found[0].gradient) for seed in range(pairs)]
    )
    scale = torch.tensor([0.5, 1.0])

    def objective(x: torch.Tensor) -> float:  # in units of the scales
        return step_loss({"level": (scale * x)[:, None]})

    at = torch.tensor([0.3, -0.2]) / scale
    theirs = torch.stack([smoothed_gradient(objective, at, sigma, 1, seed) for seed in range(pairs)]) / scale
    error = ((ours.var(0) + theirs.var(0)) / pairs).sqrt()
    assert bool(((ours.mean(0) - theirs.mean(0)).abs() < 3 * error).all())
    assert bool((error < 0.25 * theirs.mean(0).abs()).all())


def test_an_estimate_by_hand():
    """Mean over pairs of (L(theta + sigma delta) - L(theta - sigma delta)) / 2 sigma times delta / s^2."""

    def loss(controls: Controls, seed: int) -> float:
        first, last = controls["level"][:, 0].tolist()
        return math.sin(3 * first) * math.exp(last) + 0.1 * seed

    schedule, runs, sigma, seeds = Two(), Answers(loss), 0.4, [4, 7, 9]
    estimate = EvolutionStrategies(sigma).estimate(schedule, runs, seeds, {})
    total, losses, rises = torch.zeros(2), [], []
    for seed in seeds:
        delta = flat(list(direction(schedule, seed).values()))
        ends = [torch.tensor([0.3, -0.2]) + sign * sigma * delta for sign in (1, -1)]
        pair = [loss({"level": end[:, None]}, seed) for end in ends]
        rises.append((pair[0] - pair[1]) / (2 * sigma))
        total += rises[-1] * delta / torch.tensor([0.25, 1.0])
        losses += pair
    (found,) = estimate.found
    torch.testing.assert_close(flat(found.gradient), total / 3, rtol=1e-12, atol=0)
    assert [g.shape for g in found.gradient] == [p.shape for p in schedule.parameters()]
    assert found.loss == pytest.approx(sum(losses) / 6)
    assert found.diagnostics.score == 6.0 and math.isnan(found.diagnostics.dead_layers)
    assert found.diagnostics.gradient_norm == pytest.approx(float((total / 3).norm()))
    assert estimate.notes == {
        "pairs": 3.0,
        "spread": pytest.approx(float(torch.tensor(rises).std())),
        "bad_losses": 0.0,
    }
    assert estimate.state == {} and estimate.inner_steps == 6 * 2


def test_the_runs_of_a_pair_share_their_seed_and_lie_opposite_each_other():
    schedule, runs = schedule_network(), Answers(lambda controls, seed: 0.0)
    runs.problem = build_problem(tiny().problem)
    EvolutionStrategies(0.5).estimate(schedule, runs, [11, 12], {})
    assert [run.seed for run in runs.asked] == [11, 11, 12, 12]
    for i, run in enumerate(runs.asked):
        moved = {
            n: p + (-0.5 if i % 2 else 0.5) * direction(schedule, run.seed)[n] for n, p in schedule.named_parameters()
        }
        expected = functional_call(schedule, moved, (progress_of_steps(5), runs.problem.network.layers))
        for name, values in run.controls.items():
            assert torch.equal(values, expected[name]) and not values.requires_grad
    assert not torch.equal(runs.asked[0].controls["weight_noise"], runs.asked[1].controls["weight_noise"])


# --- losses that are not finite ---


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_pair_with_a_loss_that_is_not_finite_is_left_out(bad):
    values = iter([1.0, 3.0, bad, 2.0, 5.0, 4.0])
    runs = Answers(lambda controls, seed: next(values))
    estimate = EvolutionStrategies(0.5).estimate(Two(), runs, [0, 1, 2], {})
    expected = torch.zeros(2)
    for seed, rise in ((0, -2.0), (2, 1.0)):
        expected += rise * flat(score_function(Two(), direction(Two(), seed))) / 2
    (found,) = estimate.found
    torch.testing.assert_close(flat(found.gradient), expected)
    assert estimate.notes["bad_losses"] == 1.0
    assert found.loss == (1 + 3 + 5 + 4) / 4 and found.diagnostics.nonfinite == 0


def test_where_no_loss_is_finite_the_estimate_is_not_either():
    estimate = EvolutionStrategies(0.5).estimate(Two(), Answers(lambda controls, seed: math.nan), [0, 1], {})
    assert estimate.found[0].diagnostics.nonfinite == 3 and estimate.notes["bad_losses"] == 4.0


def test_finite_pairs():
    assert finite_pairs([-math.inf, -2.0, 0.0, -1.0, 1.0, math.nan, 1.0, 2.0]) == [1, 3]
    assert finite_pairs([]) == [] and finite_pairs([math.nan, 1.0, 2.0, math.inf]) == [0, 1]
    assert bad_losses([Judged(math.nan, 0), Judged(0, math.nan), Judged(-math.inf, 0)]) == 2


# --- directions ---


def test_directions_are_functions_of_seed_and_index_on_the_scale_of_each_parameter():
    schedule = schedule_network(hidden=16)
    found = direction(schedule, 5, 2)
    assert all(torch.equal(found[n], d) for n, d in direction(schedule, 5, 2).items())
    assert list(found) == [n for n, _ in schedule.named_parameters()]
    for other in (direction(schedule, 5, 3), direction(schedule, 6, 2), direction(schedule, 5)):
        assert all(not torch.equal(found[n], d) for n, d in other.items())
    own = scales(schedule)
    for name, p in schedule.named_parameters():
        drawn = torch.cat([direction(schedule, seed)[name].flatten() for seed in range(200)]) / own[name]
        assert found[name].shape == p.shape
        assert float(drawn.mean()) == pytest.approx(0, abs=0.1) and float(drawn.std()) == pytest.approx(1, abs=0.1)


def test_the_score_function_is_dual_to_the_directions():
    """E delta_i score_j = 1 for i = j, else 0: so that the estimate of a linear loss is its slope."""
    schedule = Two()
    deltas = [direction(schedule, seed) for seed in range(4000)]
    d = torch.stack([flat(list(delta.values())) for delta in deltas])
    e = torch.stack([flat(score_function(schedule, delta)) for delta in deltas])
    torch.testing.assert_close(d.T @ e / len(d), torch.eye(2), atol=0.06, rtol=0)


def test_controls_at_leave_the_schedule_as_it_is():
    schedule, problem = schedule_network(), build_problem(tiny().problem)
    before = flat([p.detach() for p in schedule.parameters()])
    delta = direction(schedule, 0)
    here = controls_at(schedule, problem, delta, 0.0)
    expected = schedule(progress_of_steps(5), problem.network.layers)
    assert all(torch.equal(here[n], v) for n, v in expected.items())
    assert not torch.equal(controls_at(schedule, problem, delta, 1.0)["weight_noise"], here["weight_noise"])
    assert torch.equal(before, flat([p.detach() for p in schedule.parameters()]))


@pytest.mark.parametrize("hidden", [4, 32])
def test_the_scales_of_a_schedule_network_move_its_correction_by_about_one(hidden):
    """Whatever the width; of the body only once the output weights are not zero any more."""
    schedule = schedule_network(hidden)
    u, features = progress_of_steps(9), [_features(layer) for layer in build_problem(tiny().problem).network.layers]
    with torch.no_grad():
        for name, p in schedule.named_parameters():
            if name == "heads.weight":
                p += direction(schedule, 0)[name]
        start = schedule._correction(u, features)
        for name, p in schedule.named_parameters():
            moves = []
            for seed in range(1, 9):
                delta = direction(schedule, seed)[name]
                p += delta
                moves.append((schedule._correction(u, features) - start).square().mean())
                p -= delta
            assert 0.1 < float(torch.stack(moves).mean().sqrt()) < 2, name


# --- inner runs ---


@pytest.mark.parametrize("objective", ["hardened", "relaxed", "trajectory"])
def test_segments_add_up_to_the_run_and_end_in_its_outer_loss(objective):
    experiment = replace(tiny(objective=objective), task=replace(tiny().task, steps=11))
    runs, outer = local_runs(experiment.problem, experiment.meta), OuterLoss(objective)  # type: ignore[arg-type]
    controls = controls_at(schedule_network(), runs.problem, direction(schedule_network(), 0), 0.5)
    (whole,) = runs.segments([Segment(controls, 3, None, 11)])
    since: Reached | None = None
    losses = []
    for stop in (1, 4, 9, 10, 11):
        (since,) = runs.segments([Segment(controls, 3, since, stop)])
        losses.append(since.loss)
        assert since.step == stop and not any(v.requires_grad for part in since.state for v in part.values())
    for part, expected in zip(since.state, whole.state, strict=True):  # type: ignore[union-attr]
        assert part.keys() == expected.keys() and all(torch.equal(part[n], v) for n, v in expected.items())
    (judged,) = runs.judged([Run(controls, 3)])
    assert (since.loss, since.score) == (whole.loss, whole.score) == judged[:2]  # type: ignore[union-attr]
    assert len({*losses}) == (4 if objective == "trajectory" else 5)
    plain = runs.played.with_seed(3)
    if objective == "trajectory":  # the last fifth: steps 8, 9 and 10
        assert losses[:2] == [0.0, 0.0]
        ends = [
            outer_loss(replace(plain, steps=s), {n: v[:s] for n, v in controls.items()}, outer) for s in (9, 10, 11)
        ]
        assert whole.loss == pytest.approx(sum(ends) / 3, rel=1e-12)
    else:
        assert whole.loss == pytest.approx(outer_loss(plain, controls, outer), rel=1e-12)
        shorter = replace(plain, steps=4)
        short = {n: v[:4] for n, v in controls.items()}
        if objective == "hardened":
            assert losses[1] == pytest.approx(outer_loss(shorter, short, outer), rel=1e-12)


@pytest.fixture(scope="module")
def two() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def test_pooled_runs_are_local_runs(two: Pool) -> None:
    experiment = tiny()
    config, meta = experiment.problem, experiment.meta
    pooled, local = PooledRuns(config, meta, two), local_runs(config, meta)
    schedule = schedule_network()
    some = [controls_at(schedule, pooled.problem, direction(schedule, seed), 0.5) for seed in range(3)]
    runs = [Run(controls, seed) for seed, controls in enumerate(some)]
    assert pooled.judged(runs) == local.judged(runs)
    assert len({judged.loss for judged in local.judged(runs)}) == 3
    for ours, theirs in zip(pooled.gradients(runs), local.gradients(runs), strict=True):
        assert ours.loss == theirs.loss and all(torch.equal(ours.wrt[n], g) for n, g in theirs.wrt.items())
    here: list[Reached | None] = [None, None, None]
    there: list[Reached | None] = [None, None, None]
    for stop in (2, 5):
        there = [*pooled.segments([Segment(r.controls, r.seed, s, stop) for r, s in zip(runs, there, strict=True)])]
        here = [*local.segments([Segment(r.controls, r.seed, s, stop) for r, s in zip(runs, here, strict=True)])]
        for ours, theirs in zip(there, here, strict=True):
            assert ours is not None and theirs is not None
            assert (ours.step, ours.loss, ours.score) == (theirs.step, theirs.loss, theirs.score)
            for part, expected in zip(ours.state, theirs.state, strict=True):
                assert part.keys() == expected.keys() and all(torch.equal(part[n], v) for n, v in expected.items())
    found = [
        build_estimator(tiny("pes").meta).estimate(schedule, where, [0, 1, 2], {}).found[0] for where in (pooled, local)
    ]
    assert torch.equal(flat(found[0].gradient), flat(found[1].gradient))


# --- in the outer loop ---


@pytest.mark.parametrize("objective", ["hardened", "trajectory"])
@pytest.mark.parametrize("name", POPULATION)
def test_the_outer_loop_learns_by_it(name, objective):
    def learn() -> tuple[torch.Tensor, list[OuterStep]]:
        log: list[OuterStep] = []
        made = tiny(name, objective)
        runs = runs_of(made, Pool(1))
        trained = meta_train(runs, made.seed, schedule_network(), log.append)
        assert trained.inner_steps == sum(record.inner_steps for record in log)
        return flat([p.detach() for p in trained.schedule.parameters()]), log

    learned, log = learn()
    assert not torch.equal(learned, flat([p.detach() for p in schedule_network().parameters()]))
    assert bool(torch.isfinite(learned).all())
    for record in log:
        assert math.isfinite(record.loss) and 0 <= record.score <= 1 and record.skipped == 0
        assert record.notes["pairs"] == 2.0
        assert unknown_metrics(f"estimator/{note}" for note in record.notes) == []
    again, repeated = learn()
    assert torch.equal(learned, again)
    assert [r.loss for r in repeated] == [r.loss for r in log]


@pytest.mark.parametrize("name", POPULATION)
def test_a_memory_budget_has_no_effect_and_is_refused(name):
    check_estimator(tiny().problem, tiny(name).meta, "network")
    with pytest.raises(
        MetaschedError, match=rf"^meta\.memory: has no effect on {name}; leave it out: .*sweep"
    ) as caught:
        check_estimator(tiny().problem, tiny(name, memory=10**9).meta, "network")
    assert "\n" not in str(caught.value)
    assert name in ESTIMATORS and find_unroll(name) is find_unroll("sweep")


def test_estimators_by_name():
    seen = {name: type(build_estimator(MetaConfig(estimator=name, sigma=0.25))).__name__ for name in POPULATION}  # type: ignore[arg-type]
    assert seen == {"es": "EvolutionStrategies", "pes": "PersistentES", "nres": "NoiseReuseES"}
    assert build_estimator(MetaConfig(estimator="nres", sigma=0.25, window=7)) == build_estimator(
        MetaConfig(estimator="nres", sigma=0.25, window=7, runs=9)
    )
