"""What holds for every estimate: diagnostics that count what went wrong, and an outer loop that survives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from learning import runs_of, shrunk
from torch import nn

from metasched.commands.check import random_controls
from metasched.config.schema import Experiment
from metasched.engines import UNROLLS, find_unroll
from metasched.engines.base import (
    ControlGradient,
    OuterLoss,
    Unrolled,
    control_gradient,
    derivative_faults,
    estimate_by,
    pull_back,
)
from metasched.estimators.reverse import Floored
from metasched.meta.config import MetaConfig
from metasched.meta.guards import RunStopped, clip, keep
from metasched.meta.outer import MetaTraining, OuterStep, meta_train
from metasched.methods import METHODS, build_method
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors
from metasched.runs.local import Run
from metasched.schedules.base import progress_of_steps
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem


def tiny(**sections: Any) -> Experiment:
    task = TaskConfig(model="mlp", width=4, train=64, validation=32)
    return shrunk(replace(Experiment(task=task), **sections))


def ana(forward: str = "mode", activation_levels: str | None = "ternary") -> Experiment:
    return tiny(method=MethodConfig(name="ana", forward=forward, activation_levels=activation_levels))  # type: ignore[arg-type]


def drawn(problem: InnerProblem, index: int = 0) -> Tensors:
    return random_controls(problem.network.method.controls, problem.steps, len(problem.network.layers), 0, index)


# --- every method, every control ---


@pytest.mark.parametrize("estimator", UNROLLS)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "dpq" and build_method(MethodConfig(name=m)).controls])  # type: ignore[arg-type]
def test_every_differentiable_control_of_every_layer_gets_a_gradient(method, estimator):
    problem = build_problem(tiny(method=MethodConfig(name=method)).problem, relaxation=0.1)
    controls = drawn(problem)
    found = control_gradient(find_unroll(estimator), problem, controls, OuterLoss())
    declared = problem.network.method.controls
    assert set(found.wrt) == {c.name for c in declared}
    for control in declared:
        slope = found.wrt[control.name]
        assert slope.shape == controls[control.name].shape and slope.dtype == torch.float64
        assert bool(slope.any(0).all()) == (control.gradient != "none"), control.name
    assert found.nonfinite == 0 and found.dead_layers == 0 and found.seconds > 0 and 0 <= found.score <= 1


def test_a_control_that_nothing_reads_has_a_gradient_of_zeros():
    problem = build_problem(ana().problem)
    controls = {**drawn(problem), "unread": torch.ones(3, 3)}
    found = control_gradient(find_unroll("unroll"), problem, controls, OuterLoss())
    assert torch.equal(found.wrt["unread"], torch.zeros(3, 3))


# --- diagnostics ---


@pytest.mark.parametrize("estimator", UNROLLS)
@pytest.mark.parametrize(
    ("activation_levels", "silent", "dead"),
    [
        (None, 0, 1),  # weights alone: the layer itself
        (None, 2, 1),
        ("ternary", 0, 1),  # no gradient passes its activation: the layer and all below it
        ("ternary", 2, 3),
    ],
)
def test_layers_without_noise_are_counted_as_dead(estimator, activation_levels, silent, dead):
    problem = build_problem(ana("expectation", activation_levels).problem)
    controls = drawn(problem)
    for name in ("weight_noise", *(["activation_noise"] if activation_levels else [])):
        controls[name][:2, silent] = 0  # at two of the three steps
    found = control_gradient(find_unroll(estimator), problem, controls, OuterLoss())
    assert found.dead_layers == pytest.approx(2 * dead / (3 * 3))


@pytest.mark.parametrize("estimator", UNROLLS)
def test_a_control_that_is_not_a_number_is_seen(estimator):
    problem = build_problem(ana("expectation").problem)
    controls = drawn(problem)
    controls["noise_mean"][1, 1] = float("nan")
    found = control_gradient(find_unroll(estimator), problem, controls, OuterLoss("relaxed"))
    assert math.isnan(found.loss)
    assert found.nonfinite == 1 + sum(int((~torch.isfinite(g)).sum()) for g in found.wrt.values())


def test_values_that_are_not_finite_are_counted_one_by_one():
    factors = torch.tensor([[1.0, float("inf"), -2.0], [float("nan"), 1.0, 1.0], [1.0, 1.0, 1.0]])

    def unroll(problem: InnerProblem, controls: Any, outer: OuterLoss) -> Unrolled:
        loss = (factors * controls["weight_noise"]).sum()
        return Unrolled(loss, torch.tensor(0.5), 0.25)

    problem = build_problem(ana().problem)
    found = control_gradient(unroll, problem, drawn(problem), OuterLoss())
    assert found.nonfinite == 3 and found.dead_layers == 0.25  # two factors and the loss


class Linear(nn.Module):
    """A schedule [T, L] that is linear in its three parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.5, 0.1, 0.2]))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, progress: torch.Tensor, layers: Any) -> dict[str, torch.Tensor]:
        noise = self.theta[0] + (self.theta[1] * progress)[:, None].expand(-1, len(layers))
        return {
            "weight_noise": noise,
            "activation_noise": noise,
            "noise_mean": (self.theta[2] * progress)[:, None].expand(-1, len(layers)),
        }


@pytest.mark.parametrize("estimator", UNROLLS)
def test_the_gradient_of_the_schedule_is_that_of_the_controls_pulled_back(estimator):
    schedule, problem, outer = Linear(), build_problem(ana().problem), OuterLoss()
    unroll = find_unroll(estimator)
    found = estimate_by(unroll, schedule, problem, outer)
    progress = progress_of_steps(problem.steps)
    values = {name: v.detach() for name, v in schedule(progress, problem.network.layers).items()}
    wrt = control_gradient(unroll, problem, values, outer).wrt
    scale, mean = (wrt["weight_noise"] + wrt["activation_noise"]).sum(1), wrt["noise_mean"].sum(1)
    expected = torch.stack([scale.sum(), (scale * progress).sum(), (mean * progress).sum()])
    torch.testing.assert_close(found.gradient[0], expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(found.gradient[1], torch.zeros(2))
    diagnostics = found.diagnostics
    assert diagnostics.gradient_norm == pytest.approx(float(expected.norm()), rel=1e-12)
    assert diagnostics.nonfinite == 0 and diagnostics.peak_bytes > 1e6 and diagnostics.seconds > 0


# --- guards ---


def test_clip_keeps_the_direction_and_bounds_the_norm():
    gradient = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert clip(gradient, 5.0) == (gradient, False)
    shorter, was = clip(gradient, 1.0)
    assert was
    torch.testing.assert_close(shorter, [torch.tensor([0.6, 0.0]), torch.tensor([[0.8]])])


def test_floored_bounds_the_noise_alone_and_has_the_parameters_of_its_schedule():
    schedule = Linear()
    with torch.no_grad():
        schedule.theta.copy_(torch.tensor([0.5, -0.5, -0.25]))
    floored = Floored(schedule, build_method(MethodConfig(name="ana")).controls, 0.1)
    values = floored(torch.tensor([0.0, 0.5, 1.0]), range(2))
    torch.testing.assert_close(values["weight_noise"][:, 0], torch.tensor([0.5, 0.25, 0.1]))
    torch.testing.assert_close(values["noise_mean"][:, 0], torch.tensor([0.0, -0.125, -0.25]))
    assert next(iter(floored.parameters())) is schedule.theta
    (slope,) = torch.autograd.grad(values["weight_noise"].sum(), schedule.theta)
    assert slope.tolist() == [4.0, 1.0, 0.0]  # nothing from the floored step


# --- the outer loop, with planted estimates ---


class Planted:
    """In place of the worker pool: gives the estimates that ``plan(outer step, run)`` says, and keeps the arguments."""

    workers = 1

    def __init__(self, plan: Callable[[int, int], Tensors]) -> None:
        self.plan = plan
        self.seen: list[Run] = []
        self.step = -1

    def map(
        self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]
    ) -> Iterator[list[ControlGradient]]:
        self.step += 1
        for run, (_, _, question, runs) in enumerate(arguments):
            assert question == "gradients" and len(runs) == 1
            self.seen += runs
            wrt = self.plan(self.step, run)
            nonfinite = sum(int((~torch.isfinite(g)).sum()) for g in wrt.values())
            faults = derivative_faults(wrt, ["conv1", "conv2", "conv3"])
            yield [ControlGradient(float(run), 0.5, wrt, nonfinite, 0.0, 0.0, faults)]


STEPS, LAYERS = 3, 3


def wrt(scale: torch.Tensor) -> Tensors:
    none = torch.zeros(STEPS, LAYERS)
    return {"weight_noise": scale, "activation_noise": none, "noise_mean": none}


def plain(step: int, run: int) -> Tensors:
    return wrt(torch.linspace(-1, 1, STEPS * LAYERS).reshape(STEPS, LAYERS) * (1 + run) + 0.1 * step)


def broken(step: int, run: int) -> Tensors:
    scale = plain(step, run)["weight_noise"]
    scale[1, 2] = float("nan")
    return wrt(scale)


def schedule_network() -> ScheduleNetwork:
    controls = build_problem(ana().problem).network.method.controls
    return ScheduleNetwork(controls, hand_coded("ana")["ana_linear"], ["weight_noise"], knots=5, hidden=4, seed=0)


def learn(plan: Callable[[int, int], Tensors], **meta: Any) -> tuple[MetaTraining, Planted, list[OuterStep]]:
    experiment = replace(ana(), meta=MetaConfig(**{"steps": 1, "runs": 2, "clip": 1e9, "noise_floor": 0.02, **meta}))
    pool, log = Planted(plan), []
    runs = runs_of(experiment, pool)  # type: ignore[arg-type]
    return meta_train(runs, experiment.seed, schedule_network(), log.append), pool, log  # type: ignore[arg-type]


def parameters(schedule: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in schedule.parameters()])


@cache
def pulled(step: int, run: int) -> torch.Tensor:
    """The gradient of the planted estimate in the schedule's parameters, at its start."""
    schedule, problem = schedule_network(), build_problem(ana().problem)
    values = Floored(schedule, problem.network.method.controls, 0.02)(progress_of_steps(STEPS), problem.network.layers)
    found = ControlGradient(0.0, 0.0, plain(step, run), 0, 0.0, 0.0)
    return torch.cat([g.flatten() for g in pull_back(schedule, values, found).gradient])


def applied(schedule: nn.Module) -> torch.Tensor:
    """The gradient of the last update."""
    return torch.cat([p.grad.flatten() for p in schedule.parameters() if p.grad is not None])


def test_the_update_is_along_the_mean_over_runs():
    trained, _, log = learn(plain, runs=3)
    torch.testing.assert_close(applied(trained.schedule), (pulled(0, 0) + pulled(0, 1) + pulled(0, 2)) / 3)
    assert float(pulled(0, 0).norm()) > 0
    (record,) = log
    assert (record.loss, record.score, record.clipped, record.skipped) == (1.0, 0.5, 0, 0)
    norms = [float(pulled(0, run).norm()) for run in range(3)]
    assert record.gradient_norm == pytest.approx(sum(norms) / 3)
    assert trained.inner_steps == record.inner_steps == 9 and trained.history == (record,)
    assert not torch.equal(parameters(trained.schedule), parameters(schedule_network()))


def test_an_exploding_run_cannot_outvote_the_others():
    def exploding(step: int, run: int) -> Tensors:
        return wrt(plain(0, 0)["weight_noise"] * (-1e8 if run == 1 else 1))

    norm = float(pulled(0, 0).norm())
    trained, _, log = learn(exploding, clip=2 * norm)
    torch.testing.assert_close(applied(trained.schedule), (pulled(0, 0) - 2 * pulled(0, 0)) / 2)
    assert (log[0].clipped, log[0].skipped) == (1, 0)


def test_a_run_that_is_not_finite_is_left_out_and_counted():
    trained, _, log = learn(lambda step, run: (broken if run == 1 else plain)(step, run), runs=3)
    torch.testing.assert_close(applied(trained.schedule), (pulled(0, 0) + pulled(0, 2)) / 2)
    assert (log[0].skipped, log[0].nonfinite, log[0].loss) == (1, 1, 1.0)
    assert math.isfinite(log[0].gradient_norm)


def test_a_step_without_a_finite_estimate_changes_nothing():
    trained, pool, log = learn(broken, steps=2)
    assert torch.equal(parameters(trained.schedule), parameters(schedule_network()))
    assert [record.skipped for record in log] == [2, 2] and [record.nonfinite for record in log] == [2, 2]
    assert all(math.isnan(record.loss) and math.isnan(record.gradient_norm) for record in log)
    assert len({run.seed for run in pool.seen}) == 4  # each run of each step from its own seed


def test_two_bad_steps_do_not_stop_it_and_leave_no_trace_in_the_optimizer():
    recovered, _, log = learn(lambda step, run: (broken if step < 2 else plain)(step, run), steps=3)
    straight, _, _ = learn(lambda step, run: plain(2, run), steps=1)
    assert [record.skipped for record in log] == [2, 2, 0]
    moved = parameters(straight.schedule) - parameters(schedule_network())
    # the mean over the last half of the steps has the third alone: in the second nothing moved
    torch.testing.assert_close(parameters(recovered.schedule), parameters(schedule_network()) + moved)


def test_three_bad_steps_in_a_row_stop_it():
    fault = "hypergradient weight_noise of conv3 at inner step 1"
    expected = rf"outer step 4: no update on digits in 3 steps in a row, .* \({fault}\)"
    with pytest.raises(RunStopped, match=expected) as caught:
        learn(lambda step, run: (plain if step == 0 else broken)(step, run), steps=9)
    assert "meta.noise_floor" in caught.value.fix and caught.value.exit_code == 1


def test_inner_runs_never_see_noise_below_the_floor():
    _, pool, _ = learn(plain, noise_floor=0.3)
    for controls, _ in pool.seen:
        assert float(controls["weight_noise"].min()) == 0.3 < float(controls["weight_noise"].max())
        assert not controls["weight_noise"].requires_grad


def test_keep_drops_what_is_not_finite():
    problem, schedule = build_problem(ana().problem), Linear()
    values = schedule(progress_of_steps(STEPS), problem.network.layers)
    good, bad = (
        pull_back(schedule, values, ControlGradient(0.0, 0.0, plan(0, 0), nonfinite, 0.0, 0.0))
        for plan, nonfinite in ((plain, 0), (broken, 1))
    )
    assert keep([bad, good, bad]) == [good]
