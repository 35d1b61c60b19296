"""What a run measures of itself: by hand on tiny tensors, in numpy along a whole run, and across a stop."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metasched import MetaschedError, build_problem, hand_coded, progress_of_steps, quantize, train
from metasched.config.schema import Experiment
from metasched.contrib.data_parallel import train_in_parts
from metasched.engines.base import OuterLoss
from metasched.engines.sweep import unroll
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors, rows, rows_of
from metasched.network.quantized import QuantizedNetwork
from metasched.runs.config import RunConfig
from metasched.runs.local import Along, LocalRuns, Run, Segment, reach_each
from metasched.schedules.family import ScheduleFamily
from metasched.schedules.feedback import FeedbackSchedule, open_loop
from metasched.tasks.config import TaskConfig
from metasched.training.feedback import Controller, controller_of, features_of
from metasched.training.loop import take_steps
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.stacked import train_each, train_mapped
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import inner_step

STEPS = 14


def problem_of(**method: Any) -> InnerProblem:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=8, steps=STEPS, batch=32, train=128, validation=16, test=16),
        method=MethodConfig(**{"name": "widths", "scale": "least_squares", **method}),
        optimizer=OptimizerConfig(name="adam", lr=0.05),
        run=RunConfig(dtype="float64"),
    )
    return build_problem(experiment.problem).with_seed(7)


def controls_of(problem: InnerProblem, gain: float = 1.0) -> Tensors:
    controls = problem.network.method.controls
    name = "inq" if controls[0].name == "freeze_fraction" else "widths"
    base = hand_coded(name)[{"inq": "inq_linear", "widths": "widths_narrowing"}[name]]
    learn = [c.name for c in controls]
    schedule = FeedbackSchedule(ScheduleFamily(controls, base, learn, knots=7, layers=problem.network.layers))
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for gains in schedule.gains.values():
            gains.copy_(gain * torch.randn(gains.shape, generator=draws, dtype=torch.float64))
        return schedule(progress_of_steps(STEPS), problem.network.layers)


def one_layer() -> QuantizedNetwork:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()).double()
    method = build_method(MethodConfig(name="widths", scale="max"))
    return quantize(model, method, torch.zeros(1, 2, dtype=torch.float64), last=True)


def test_by_hand() -> None:
    network = one_layer()
    key = network.layers[0].weight_key
    row = {c.name: torch.tensor([1.0], dtype=torch.float64) for c in network.method.controls}
    state = {f"{network.layers[0].name}/scale": torch.full((1, 1), 2.0, dtype=torch.float64)}  # levels -2, 0, 2

    def weight(*numbers: float) -> Tensors:
        return {key: torch.tensor(numbers, dtype=torch.float64).reshape(2, 2)}

    controller = Controller(network, 100)  # averages move by 1 / 5 and 1 / 20
    first_end = weight(0.0, 1.2, 1.5, -3.0)
    first = controller.after({}, row, torch.tensor(4.0), weight(0.0, 0.9, 1.5, -3.0), first_end, state)
    assert float(first["loss_fast"]) == float(first["loss_slow"]) == 4
    assert first["flips"].tolist() == [0.25]  # 0.9 is nearest to 0, 1.2 to 2
    # distances 0, 0.8, 0.5, and 1 beyond the levels; half a quantum is 1
    assert first["distance"].tolist() == pytest.approx([(0 + 0.8 + 0.5 + 1) / 4], abs=1e-15)
    second = controller.after(
        first, row, torch.tensor(2.0), weight(0.0, 1.2, 1.5, -3.0), weight(2.0, -2.0, 2.0, 2.0), state
    )
    assert float(second["loss_fast"]) == pytest.approx(4 - 2 / 5) and float(second["loss_slow"]) == pytest.approx(3.9)
    assert second["flips"].tolist() == pytest.approx([0.25 + (0.75 - 0.25) / 5])  # 1.5 and 2 have one code
    assert second["distance"].tolist() == [0.0]
    codes = 100 * 0.35
    expected = [[(3.6 - 3.9) / 7.5], [-1.0], [(codes - 1) / (codes + 1)]]
    np.testing.assert_allclose(features_of(second, 100).numpy(), expected, rtol=0, atol=1e-15)


def test_losses_that_are_not_finite_do_not_count() -> None:
    network = one_layer()
    row = {c.name: torch.tensor([1.0], dtype=torch.float64) for c in network.method.controls}
    w = {network.layers[0].weight_key: torch.zeros(2, 2, dtype=torch.float64)}
    state = {f"{network.layers[0].name}/scale": torch.ones(1, 1, dtype=torch.float64)}
    controller, measured = Controller(network, 10), {}
    for loss in (float("inf"), 3.0, float("nan"), float("inf")):
        measured = controller.after(measured, row, torch.tensor(loss, dtype=torch.float64), w, w, state)
        assert bool(features_of(measured, 10).isfinite().all())
    assert float(measured["loss_fast"]) == float(measured["loss_slow"]) == 3
    assert features_of(measured, 10)[0].tolist() == [0.0]


def test_a_layer_of_zeros_is_no_distance_away() -> None:
    network = one_layer()
    row = {c.name: torch.tensor([1.0], dtype=torch.float64) for c in network.method.controls}
    w = {network.layers[0].weight_key: torch.zeros(2, 2, dtype=torch.float64)}
    state = {f"{network.layers[0].name}/scale": torch.zeros(1, 1, dtype=torch.float64)}
    measured = Controller(network, 10).after({}, row, torch.tensor(0.0), w, w, state)
    assert features_of(measured, 10).tolist() == [[0.0], [-1.0], [-1.0]]


@pytest.mark.parametrize("method", [{}, {"name": "inq"}, {"scale": "learned"}, {"granularity": "channel"}])
def test_a_run_without_gains_is_the_open_loop_bit_for_bit(method: dict[str, Any]) -> None:
    problem = problem_of(**method)
    controls = controls_of(problem, gain=0.0)
    closed, plain = train(problem, controls), train(problem, open_loop(controls))
    assert closed.state.measured and not plain.state.measured
    assert torch.equal(closed.losses, plain.losses)
    for part in ("params", "buffers", "optimizer", "method"):
        own = getattr(closed.state, part)
        assert all(torch.equal(own[name], t) for name, t in getattr(plain.state, part).items())


def test_with_gains_it_is_another_run() -> None:
    problem = problem_of()
    controls = controls_of(problem)
    assert not torch.equal(train(problem, controls).losses, train(problem, open_loop(controls)).losses)


def test_a_whole_run_measures_what_numpy_measures() -> None:
    """Nearest levels, averages and features, from the weights and losses of the run alone."""
    problem = problem_of()
    controls, layers = controls_of(problem), problem.network.layers
    state = problem.initial(rows(controls, 0))
    fast = slow = flips = None
    for done in take_steps(problem, state, controls, range(STEPS)):
        changed, away = [], []
        for layer in layers:
            scale = done.state.method[f"{layer.name}/scale"].numpy()
            before, after = (s.params[layer.weight_key].detach().numpy() / scale for s in (state, done.state))
            codes = [np.abs(w[..., None] - np.array([-1.0, 0.0, 1.0])).argmin(-1) for w in (before, after)]
            changed.append((codes[0] != codes[1]).mean())
            away.append(np.minimum(2 * np.abs(after - (codes[1] - 1)), 1).mean())
        loss = float(done.loss)
        fast = loss if fast is None else fast + min(1, 20 / STEPS) * (loss - fast)
        slow = loss if slow is None else slow + min(1, 5 / STEPS) * (loss - slow)
        flips = np.array(changed) if flips is None else flips + min(1, 20 / STEPS) * (np.array(changed) - flips)
        x = STEPS * flips
        expected = [np.full(len(layers), (fast - slow) / (fast + slow)), 2 * np.array(away) - 1, (x - 1) / (x + 1)]
        found = features_of(done.state.measured, STEPS)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)
        assert bool((found.abs() <= 1).all())
        state = done.state
    assert np.abs(np.array(expected)).max() > 0.1


def test_a_run_that_is_stopped_goes_on_with_the_same_bits() -> None:
    problem = problem_of(name="joint", of="widths+inq", scale="least_squares")
    controls = controls_of(problem_of())
    controls |= {n: v for n, v in controls_of(problem_of(name="inq")).items() if n not in controls}
    whole = list(take_steps(problem, problem.initial(rows(controls, 0)), controls, range(STEPS)))
    first = list(take_steps(problem, problem.initial(rows(controls, 0)), rows_of(controls, range(6)), range(6)))
    file = io.BytesIO()
    torch.save(tuple(first[-1].state), file)
    file.seek(0)
    state = TrainingState(*torch.load(file, weights_only=True))
    rest = list(take_steps(problem, state, rows_of(controls, range(6, STEPS)), range(6, STEPS)))
    for one, other in zip(whole[6:], rest, strict=True):
        assert torch.equal(one.loss, other.loss)
        assert all(torch.equal(v, other.row[name]) for name, v in one.row.items())
        assert all(torch.equal(v, other.state.measured[name]) for name, v in one.state.measured.items())


def test_which_runs_have_a_controller() -> None:
    problem = problem_of()
    controls = controls_of(problem)
    assert controller_of(problem.network, controls, STEPS) == Controller(problem.network, STEPS)
    assert controller_of(problem.network, open_loop(controls), STEPS) is None


def test_closed_loop_runs_are_not_mapped() -> None:
    problem = problem_of()
    controls, seeds = controls_of(problem), [1, 2, 3, 4]
    alone = [train(problem.with_seed(seed), controls).state for seed in seeds]
    together = train_each(problem, controls, seeds)
    outer = OuterLoss()
    reached = reach_each(problem, [Segment(controls, seed, None, STEPS) for seed in seeds], outer)
    for one, *others in zip(alone, together, (r.state for r in reached), strict=True):
        assert all(torch.equal(one.params[name], t) for other in others for name, t in other.params.items())
    with pytest.raises(AssertionError, match="plain and single"):
        train_mapped(problem, {name: v.expand(4, *v.shape) for name, v in controls.items()}, seeds)


def test_no_engine_differentiates_them() -> None:
    problem = problem_of()
    controls = controls_of(problem)
    runs = LocalRuns(problem, problem, OuterLoss(), unroll)
    for ask in (
        lambda: runs.gradients([Run(controls, 1)]),
        lambda: runs.slopes([Along(controls, controls, 1)]),
    ):
        with pytest.raises(MetaschedError, match="is closed-loop") as refused:
            ask()
        assert "es" in refused.value.fix
    assert runs.judged([Run(controls, 1)])[0].loss > 0


def test_loops_that_do_not_measure_refuse_them() -> None:
    problem = problem_of()
    controls = controls_of(problem)
    with pytest.raises(MetaschedError, match="this loop does not measure it"):
        train_in_parts(problem, controls)
    with pytest.raises(MetaschedError, match="this loop does not measure it"):
        inner_step(problem, problem.initial(rows(controls, 0)), rows(controls, 0), 0, differentiable=False)
