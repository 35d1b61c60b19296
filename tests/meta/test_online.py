"""The online mode: its first update against the reverse estimator, what it played played again, and what it costs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metasched.commands.online import check
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.core.randomness import derive_seed
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss
from metasched.estimators import build_estimator
from metasched.evaluation.config import CompareConfig
from metasched.exchange.export import export
from metasched.exchange.format import Provenance
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import dumps, loads
from metasched.meta import online
from metasched.meta.config import MetaConfig, OnlineConfig
from metasched.meta.guards import clip
from metasched.meta.online import Adaptation, Onward, expected_cost, held_out_size, setting_of, train_online
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.flat import rows
from metasched.runs.cells import cell_score
from metasched.runs.config import RunConfig
from metasched.runs.local import LocalRuns
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import Split
from metasched.training import loop
from metasched.training.loop import hardened_score, train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem
from metasched.training.state import TrainingState

STEPS, VALIDATION = 6, 32
LAYERS = tuple(
    Layer(f"l{i}", depth=i / 2, kind="linear", quantizes="weight", fan_in=8, num_weights=64, bits=1.6) for i in range(3)
)


def experiment(method: str = "joint", dtype: str = "float64", steps: int = STEPS, **online: Any) -> Experiment:
    return Experiment(
        task=TaskConfig(model="mlp", width=4, steps=steps, batch=16, train=64, validation=VALIDATION, test=32),
        optimizer=OptimizerConfig(lr=0.02, decay="cosine"),
        method=MethodConfig(name=method),  # type: ignore[arg-type]
        schedule=ScheduleConfig(start=f"{method}_linear", knots=4, hidden=4, directions=None),
        meta=MetaConfig(noise_floor=0.1, clip=0.02),
        compare=CompareConfig(seeds=2),
        online=OnlineConfig(**{"every": 2, "window": 1, "lr": 0.5, **online}),
        run=RunConfig(workers=1, dtype=dtype),  # type: ignore[arg-type]
    )


def start(config: Experiment) -> Schedule:
    return hand_coded(config.method.name)[config.schedule.start]


def network_of(config: Experiment) -> ScheduleNetwork:
    controls = build_method(config.method).controls
    seed = derive_seed(config.seed, "schedule network")
    learn = [c.name for c in controls]
    return ScheduleNetwork(controls, start(config), learn, knots=4, hidden=4, seed=seed)


def untimed(records: tuple[Adaptation, ...]) -> list[Adaptation]:
    return [record._replace(looking=0.0, playing=0.0) for record in records]


def flat(state: TrainingState) -> dict[str, torch.Tensor]:
    return {f"{i}/{key}": t for i, part in enumerate(state) for key, t in part.items()}


@pytest.mark.parametrize("objective", ["hardened", "relaxed"])
@pytest.mark.parametrize("method", ["joint", "inq", "ana"])
def test_a_window_of_the_whole_run_is_an_outer_step_of_the_reverse_estimator(method: str, objective: str) -> None:
    config = experiment(method, every=2 * STEPS, window=STEPS, held_out=VALIDATION)
    config = replace(config, meta=replace(config.meta, objective=objective))
    found = train_online(setting_of(config), start(config), seed=7)

    network, meta = network_of(config), config.meta
    problem = build_problem(config.problem, relaxation=meta.relaxation)
    runs = LocalRuns(
        problem, build_problem(config.problem), OuterLoss(meta.objective, meta.surrogate), find_unroll("unroll")
    )
    (expected,), *_ = build_estimator(meta).estimate(network, runs, [7], {})
    (record,) = found.history
    assert record.loss == pytest.approx(expected.loss, rel=1e-12)
    assert record.gradient_norm == pytest.approx(expected.diagnostics.gradient_norm, rel=1e-8)
    assert expected.diagnostics.gradient_norm > 0
    gradient, record_clipped = clip(expected.gradient, meta.clip)
    assert record.clipped == record_clipped
    optimizer = torch.optim.Adam(network.parameters(), lr=config.online.lr)
    for p, g in zip(network.parameters(), gradient, strict=True):
        p.grad = g
    optimizer.step()
    values = network(progress_of_steps(STEPS), problem.network.layers)
    for name, v in values.items():
        torch.testing.assert_close(found.controls[name], v.detach(), rtol=1e-6, atol=1e-9)
    base = start(config)(progress_of_steps(STEPS), problem.network.layers)
    assert any(not torch.allclose(found.controls[name], v, atol=1e-3) for name, v in base.items())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["joint", "inq", "ana"])
def test_what_was_played_gives_the_same_bits_when_it_is_played_again(method: str, dtype: str) -> None:
    config = experiment(method, dtype)
    torch.set_default_dtype(torch.float32)  # as on the command line
    problem = build_problem(config.problem).with_seed(5)
    found = train_online(setting_of(config), start(config), seed=5)
    file = export(
        lambda progress, layers: found.controls,
        method_name=method,
        method_parameters={},
        controls=problem.network.method.controls,
        layers=problem.network.layers,
        knots=progress_of_steps(STEPS),
        interpolation="linear",
        provenance=Provenance(kind="learned", name="online"),
    )
    again = PlayedSchedule(loads(dumps(file), "schedule.json"))(progress_of_steps(STEPS), problem.network.layers)
    assert all(torch.equal(v, found.controls[name]) for name, v in again.items())
    like = next(problem.network.module.parameters())
    replayed = train(problem, {name: v.to(like) for name, v in again.items()}).state
    assert all(torch.equal(t, flat(found.state)[key]) for key, t in flat(replayed).items())
    score = hardened_score(problem, found.state, "test")
    assert cell_score(config.problem, again, 5, STEPS, "test") == score
    unadapted = train(problem, {n: v.to(like) for n, v in start(config)(progress_of_steps(STEPS), LAYERS).items()})
    assert any(not torch.equal(t, replayed.params[key]) for key, t in unadapted.state.params.items())


def test_it_is_a_function_of_its_arguments_and_never_of_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    config = experiment()
    first = train_online(setting_of(config), start(config), seed=3)
    torch.rand(7)
    poisoned = build_problem

    def build(*arguments: Any, **options: Any) -> Any:
        problem = poisoned(*arguments, **options)
        test = Split(torch.full_like(problem.task.test.x, math.nan), problem.task.test.y)
        return replace(problem, task=replace(problem.task, test=test))

    monkeypatch.setattr(online, "build_problem", build)
    second = train_online(setting_of(config), start(config), seed=3)
    assert all(torch.equal(v, second.controls[name]) for name, v in first.controls.items())
    assert all(torch.equal(t, flat(second.state)[key]) for key, t in flat(first.state).items())
    assert untimed(first.history) == untimed(second.history)
    other = train_online(setting_of(config), start(config), seed=4)
    assert untimed(other.history) != untimed(first.history)


@pytest.mark.parametrize(("every", "window", "steps"), [(2, 1, 6), (4, 3, 6), (5, 2, 7), (1, 4, 4), (9, 2, 4)])
def test_every_step_is_counted(monkeypatch: pytest.MonkeyPatch, every: int, window: int, steps: int) -> None:
    calls = []

    def counted(problem: Any, state: Any, controls: Any, step: int, *, differentiable: bool, seeds: None) -> Any:
        calls.append((differentiable, step))
        return own(problem, state, controls, step, differentiable=differentiable, seeds=seeds)

    own = loop.inner_step
    monkeypatch.setattr(loop, "inner_step", counted)
    config, logged = experiment("inq", steps=steps, every=every, window=window), []
    found = train_online(setting_of(config), start(config), 1, logged.append)
    assert [step for differentiable, step in calls if not differentiable] == list(range(steps))
    ahead = [s for begin in range(0, steps, every) for s in range(begin, min(begin + window, steps))]
    assert [step for differentiable, step in calls if differentiable] == ahead
    assert found.inner_steps == len(calls) and tuple(logged) == found.history
    assert [r.step for r in found.history] == [*range(every, steps, every), steps]
    assert found.cost > 1 and all(r.looking > 0 for r in found.history)


class Jumping(nn.Module):
    """Another schedule network at each call: what no single one would ever give."""

    def __init__(self, config: Experiment, seed: int) -> None:
        super().__init__()
        self.network = network_of(config)
        self.draws = torch.Generator().manual_seed(seed)

    def forward(self, progress: torch.Tensor, layers: Any) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            for p in self.network.heads.parameters():
                p.copy_(30 * torch.randn(p.shape, generator=self.draws))
        return self.network(progress, layers)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), every=st.integers(1, 7))
def test_what_is_played_keeps_range_direction_and_end(seed: int, every: int) -> None:
    config, steps = experiment(), 13
    jumping, progress, parts = Jumping(config, seed), progress_of_steps(steps), []
    controls = jumping.network.controls
    for step in range(0, steps, every):
        onward = Onward(jumping, controls, rows(parts[-1], -1) if parts else {})
        parts.append({k: v.detach() for k, v in onward(progress[step : step + every], LAYERS).items()})
    for control in controls:
        played = torch.cat([part[control.name] for part in parts])
        sign = {"nonincreasing": -1, "nondecreasing": 1, "free": 0}[control.direction]
        assert bool((sign * played.diff(dim=0) >= 0).all())
        assert bool(((played >= control.low) & (played <= control.high)).all())
        assert control.end is None or bool((played[-1] == control.end).all())


def test_a_value_that_is_held_back_has_no_derivative_and_the_others_have_theirs() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.tensor([[0.6], [0.5], [0.4]]))

        def forward(self, progress: torch.Tensor, layers: Any) -> dict[str, torch.Tensor]:
            return {"weight_noise": self.values * 1, "freeze_fraction": 1 - self.values, "noise_mean": -self.values}

    last = {"weight_noise": torch.tensor([0.5]), "freeze_fraction": torch.tensor([0.5]), "noise_mean": torch.zeros(1)}
    schedule = Plain()
    values = Onward(schedule, build_method(MethodConfig(name="joint")).controls, last)(torch.zeros(3), LAYERS)
    shown = {name: [round(x, 6) for x in v.flatten().tolist()] for name, v in values.items()}
    assert shown == {
        "weight_noise": [0.5, 0.5, 0.4],
        "freeze_fraction": [0.5, 0.5, 0.6],
        "noise_mean": [-0.6, -0.5, -0.4],
    }
    slopes = {"weight_noise": [0, 1, 1], "freeze_fraction": [0, -1, -1], "noise_mean": [-1, -1, -1]}
    for name, expected in slopes.items():
        (slope,) = torch.autograd.grad(values[name].sum(), schedule.values, retain_graph=True)
        assert slope.flatten().tolist() == expected


def test_only_the_future_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is played before the second look-ahead does not depend on it."""
    config = experiment("inq", every=3)
    found = train_online(setting_of(config), start(config), seed=2)
    own = online.look_ahead
    seen = []

    def second_is_not_finite(*arguments: Any) -> Any:
        result = own(*arguments)
        seen.append(result)
        return replace(result, diagnostics=replace(result.diagnostics, nonfinite=len(seen) - 1))

    monkeypatch.setattr(online, "look_ahead", second_is_not_finite)
    other = train_online(setting_of(config), start(config), seed=2)
    now, then = other.controls["freeze_fraction"], found.controls["freeze_fraction"]
    assert torch.equal(now[:3], then[:3]) and not torch.equal(now[3:], then[3:])
    assert [r.skipped for r in other.history] == [False, True] and not other.history[1].clipped


def test_held_out_examples_are_of_the_split_each_once() -> None:
    problem = build_problem(experiment().problem)
    task = replace(problem.task, validation=Split(torch.arange(10.0)[:, None], torch.arange(10)))

    def held_out(size: int, seed: int, step: int) -> Split:
        return task.judged_on(size, seed, step).outer_batch()

    chosen = held_out(4, seed=1, step=20)
    assert len(set(chosen.y.tolist())) == 4 and torch.equal(chosen.x.flatten(), chosen.y.double())
    assert not torch.equal(chosen.y, held_out(4, seed=1, step=30).y)
    assert sorted(held_out(10, seed=0, step=0).y.tolist()) == list(range(10))
    assert held_out_size(experiment().online, problem.task) == 16
    assert held_out_size(experiment(held_out=20).online, problem.task) == 20


def test_the_expected_cost() -> None:
    config = experiment(every=10, window=5, steps=60, held_out=16)
    assert expected_cost(config.online, build_problem(config.problem)) == 1 + (15 + 1 + 1) / 10
    config = experiment(every=20, window=50, steps=6, held_out=32)
    assert expected_cost(config.online, build_problem(config.problem)) == 1 + (18 + 1 + 2) / 20


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (experiment(steps=1), r"task\.steps: leaves nothing to look ahead to"),
        (experiment(steps=10_000), r"task\.steps: 10000 steps of 12 curves do not fit in a schedule file"),
        (experiment(every=10, window=9, steps=60), r"online\.window: 9 steps ahead at every 10 cost about 3\.9 plain"),
        (
            experiment(every=10, window=5, held_out=33),
            r"online\.held_out: asks for 33 examples, but meta-validation has 32",
        ),
        (
            replace(experiment(every=10), meta=MetaConfig(objective="trajectory")),
            r"meta\.objective: trajectory is of a whole run",
        ),
    ],
)
def test_what_is_refused(config: Experiment, message: str) -> None:
    with pytest.raises(MetaschedError, match=message):
        check(config.online, config.meta.objective, build_problem(config.problem))


def test_the_defaults_and_the_longest_run_are_taken() -> None:
    config = replace(experiment("inq", steps=4096), online=OnlineConfig())
    check(config.online, config.meta.objective, build_problem(config.problem))
