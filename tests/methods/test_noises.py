"""ANA's noise of weights and that of activations: each has its own effect and its own hypergradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from metasched.config.schema import Experiment
from metasched.core.randomness import Draw
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.finite_differences import outer_loss
from metasched.meta.config import OnlineConfig
from metasched.meta.online import setting_of, train_online
from metasched.methods import METHODS, build_method
from metasched.methods.base import Method
from metasched.methods.config import MethodConfig
from metasched.network.config import QuantizeConfig
from metasched.network.flat import Tensors
from metasched.runs.config import RunConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.learnable import build_learnable
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.loop import train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem

NAMES = ("ana", "joint")
NOISES = ("weight_noise", "activation_noise")
OTHER = dict(zip(NOISES, reversed(NOISES), strict=True))
STEPS = 4
DRAW = Draw(2, 4, 0)


def experiment(method: str, last: bool = False, **parameters: Any) -> Experiment:
    return Experiment(
        task=TaskConfig(model="mlp", width=5, steps=STEPS, batch=16, train=64, validation=32, test=16),
        optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.5),
        method=MethodConfig(name=method, **parameters),
        quantize=QuantizeConfig(last=last),
        schedule=ScheduleConfig(kind="family", knots=3),
        online=OnlineConfig(every=2, window=1),
        run=RunConfig(dtype="float64"),
    )


def problem_of(method: str, last: bool = False, relaxation: float = 0.0, **parameters: Any) -> InnerProblem:
    return build_problem(experiment(method, last, **parameters).problem, relaxation=relaxation).with_seed(2)


def drawn(problem: InnerProblem) -> Tensors:
    """Wide noise and little freezing, other at each step and in each layer."""
    draws = torch.Generator().manual_seed(3)
    shape = (STEPS, len(problem.network.layers))
    controls = {name: 0.5 + 0.3 * torch.rand(shape, generator=draws) for name in NOISES}
    controls["noise_mean"] = 0.2 * torch.rand(shape, generator=draws) - 0.1
    controls["freeze_fraction"] = (0.2 + 0.1 * torch.rand(shape, generator=draws)).cummax(0).values
    return {c.name: controls[c.name] for c in problem.network.method.controls}


def row(method: Method, **values: float) -> Tensors:
    given = {"weight_noise": 0.5, "activation_noise": 0.5, "noise_mean": 0.1, "freeze_fraction": 0.3, **values}
    return {c.name: torch.tensor(given[c.name]) for c in method.controls}


@pytest.mark.parametrize("engine", ["unroll", "sweep"])
@pytest.mark.parametrize("method", NAMES)
def test_each_hypergradient_against_central_differences(method: str, engine: str) -> None:
    problem = problem_of(method, relaxation=0.3, forward="expectation", noise="normal")
    controls, outer = drawn(problem), OuterLoss("relaxed", 0.5)
    found = control_gradient(find_unroll(engine), problem, controls, outer).wrt
    draws, h = torch.Generator().manual_seed(7), 1e-5
    slopes = []
    for name in NOISES:
        direction = torch.randn(controls[name].shape, generator=draws)
        above, below = ({**controls, name: controls[name] + s * h * direction} for s in (1, -1))
        difference = (outer_loss(problem, above, outer) - outer_loss(problem, below, outer)) / (2 * h)
        slopes.append(float((found[name] * direction).sum()))
        assert slopes[-1] == pytest.approx(difference, rel=1e-6, abs=1e-9)
    assert min(map(abs, slopes)) > 1e-6
    assert not torch.allclose(*(found[name] for name in NOISES), rtol=0.01)


@pytest.mark.parametrize("forward", ["expectation", "mode", "random"])
@pytest.mark.parametrize("name", NAMES)
def test_neither_acts_through_the_tensor_of_the_other(name: str, forward: str) -> None:
    method = build_method(MethodConfig(name=name, forward=forward, scale="max"))  # pyright: ignore
    w, _, state = method.initialize(torch.randn(8, 25), row(method), DRAW)
    state = method.prepare(w, state, row(method), DRAW)
    x = torch.randn(200)

    def seen(control: str, values: Tensors) -> list[torch.Tensor]:
        """What the tensor of a control looks like, and its derivative in the tensor."""
        tensor = (w if control == "weight_noise" else x).clone().requires_grad_()
        hook = method.weight if control == "weight_noise" else method.activation
        out = hook(tensor, state, values, DRAW)
        (slope,) = torch.autograd.grad(out.sum(), tensor)
        return [out, slope]

    for control in NOISES:
        before = seen(control, row(method))
        other, own = seen(control, row(method, **{OTHER[control]: 0.9})), seen(control, row(method, **{control: 0.9}))
        assert all(torch.equal(a, b) for a, b in zip(before, other, strict=True))
        assert not torch.equal(before[1], own[1])  # the forward pass may be hard


@pytest.mark.parametrize("name", NAMES)
def test_each_moves_the_training_and_not_in_the_same_way(name: str) -> None:
    problem = problem_of(name)
    controls = drawn(problem)
    changed = [controls, *({**controls, noise: controls[noise] - 0.2} for noise in NOISES)]
    losses = [train(problem, each).losses for each in changed]
    assert len({tuple(own.tolist()) for own in losses}) == 3


def test_a_layer_without_a_quantized_activation_does_not_read_its_noise() -> None:
    problem = problem_of("ana", last=True, forward="expectation", noise="normal")
    kinds = [layer.quantizes for layer in problem.network.layers]
    assert kinds[-1] == "weight"
    found = control_gradient(find_unroll("sweep"), problem, drawn(problem), OuterLoss("relaxed", 0.5)).wrt
    for i, kind in enumerate(kinds):
        assert bool(found["activation_noise"][:, i].any()) == (kind == "weight+activation")
        assert bool(found["weight_noise"][:, i].any())


@pytest.mark.parametrize("name", NAMES)
def test_a_method_declares_what_it_quantizes(name: str) -> None:
    both, weights = (build_method(MethodConfig(name=name, activation_levels=own)) for own in ("ternary", None))
    assert [c.name for c in both.controls[:3]] == [*NOISES, "noise_mean"]
    assert [c.name for c in weights.controls[:2]] == ["weight_noise", "noise_mean"]
    facts = {(c.low, c.high, c.unit, c.direction, c.end, c.learning_floor) for c in both.controls[:2]}
    assert facts == {(0.0, 1.0, "quantum, half-width of the noise", "nonincreasing", 0.0, 0.35)}
    assert METHODS[name].former == {"noise_scale": NOISES}


@pytest.mark.parametrize("name", NAMES)
def test_hand_coded_schedules_have_one_curve_for_both(name: str) -> None:
    layers = problem_of(name).network.layers
    for schedule in hand_coded(name).values():
        values = schedule(progress_of_steps(21), layers)
        assert torch.equal(values["weight_noise"], values["activation_noise"])


@pytest.mark.parametrize("kind", ["network", "family"])
def test_what_is_learned_without_quantized_activations_has_no_noise_of_them(kind: str) -> None:
    """Though the hand-coded schedule that it starts at has a curve for both."""
    own = experiment("ana", activation_levels=None)
    own = replace(own, schedule=replace(own.schedule, kind=kind))  # pyright: ignore
    start, network = hand_coded("ana")["ana_linear"], build_problem(own.problem).network
    declared = network.method.controls
    names = [control.name for control in declared]
    learnable = build_learnable(own.schedule, declared, start, names, network.layers, 0)
    played = learnable(progress_of_steps(STEPS), network.layers)
    assert played.keys() == set(names) == {"weight_noise", "noise_mean"}
    assert train_online(setting_of(own), start, seed=2).controls.keys() == set(names)
